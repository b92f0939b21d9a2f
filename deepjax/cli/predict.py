"""Classify images: names and probabilities, printed and written as CSV or JSON.

    deepjax predict photos/new --run runs/photos
    deepjax predict cat.jpg dog.jpg --run runs/photos --top 3 --output predictions.csv
    deepjax predict photos --name resnet50 --weights timm/resnet50.a1_in1k --output found.json
    deepjax predict photos --weights exported
    deepjax predict cat.jpg --name vgg16 --weights v.pth --known 'torchvision IMAGENET1K_V1'

Folders are searched for JPEG and PNG files.
"""

import csv
import dataclasses
import functools
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.command_line import parse
from deepjax.data.label_names import label_names
from deepjax.errors import InputError, require
from deepjax.evaluation.models import (
    PreprocessingOverrides,
    from_run,
    from_weights,
    require_photographs,
)
from deepjax.evaluation.predict import EvalModel, predict
from deepjax.evaluation.protocols import resolve_protocol
from deepjax.evaluation.unlabelled import find_images, open_images
from deepjax.help_page import HelpPage
from deepjax.io import write_text
from deepjax.paths import user_path
from deepjax.progress import display, say_on_stderr
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.custom_network import import_network
from deepjax.training.distributed.sharding import Partitioner, make_mesh

FORMATS, TITLE = (".csv", ".json"), "classifying"
Prediction = dict[str, Any]
USUAL_OPTIONS = {
    "images": {"IMAGE ...": "files, and folders of JPEG and PNG files"},
    "network": {
        "--run": "run directory of `deepjax train`: its newest checkpoint",
        "--weights": "a file, a folder or a repository; or a folder of `deepjax export`",
        "--name": "its network, where --weights do not give it",
        "--model": "package.module:Class, where it is your own",
    },
    "preprocessing": {
        "--crop": "pixels a side; --resize: of the shorter side before the crop",
        "--known": "which public weights a file holds, for their preprocessing",
    },
    "output": {
        "--top": "classes shown for each image (default: 5)",
        "--output": "a file .csv or .json to write",
        "--json": "print JSON",
    },
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Classify images by a run or by weights."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """Files, and folders of JPEG and PNG files; hidden ones in folders are ignored."""
    run: Path | None = None
    """Run directory of `deepjax train`: its newest checkpoint."""
    ema: bool = True
    """Of a run that was trained with --ema-decay the averaged weights; --no-ema: the parameters of
    the last step."""
    name: str = ""
    """Name of a network of the table, for --weights; a folder of `deepjax export` has its own."""
    weights: str = ""
    """A file, a folder or a repository of weights for ImageNet's classes; or a folder of `deepjax
    export`, with its classes."""
    entry: str | None = None
    """Which network of a file that holds several, by the prefix of its tensors, e.g. model_ema."""
    model: str = ""
    """package.module:Class of the network, where it is your own."""
    overrides: Annotated[PreprocessingOverrides, tyro.conf.arg(name="")] = PreprocessingOverrides()
    top: int = 5
    """Classes shown for each image."""
    output: Path | None = None
    """A file .csv or .json to write; an existing one is refused."""
    batch_size: int = 64
    """Images per step."""
    json: bool = False
    """Print JSON, as --output writes it; messages go to stderr."""

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "1 or more")
        one = (self.run is None) == bool(self.weights)
        require(one, "run", self.run, "a run directory, or --name and --weights")
        require(self.ema or self.run is not None, "ema", self.ema, "--no-ema only for a run")
        without = "a prefix only with --weights"
        require(self.entry is None or bool(self.weights), "entry", self.entry, without)
        writable = self.output is None or self.output.suffix.lower() in FORMATS
        require(writable, "output", str(self.output), "a file .csv or .json")


def start(arguments: Sequence[str]) -> None:
    """Parse the options, classify, print, write."""
    options = parse(Options, arguments, page=HelpPage(str(__doc__), USUAL_OPTIONS))
    output = options.output and user_path(options.output, "output")
    if output is not None and output.exists():
        raise InputError(f"output is {output}, which exists; choose another, or remove it")
    paths = find_images(options.images)
    enable_compilation_cache()
    member = load_member(options)
    if member.assumed:
        say_on_stderr(f"{member.source}: {member.assumed}")
    found = classify(member, paths, options)
    print(_json(found) if options.json else "".join(f"{_line(each)}\n" for each in found), end="")
    if output is not None:
        write_text(output, _csv(found) if output.suffix.lower() == ".csv" else _json(found))
        print(f"{output}: {len(found):,} images", file=sys.stderr)


def load_member(options: Options) -> EvalModel:
    """The network with its preprocessing."""
    overrides = options.overrides
    make = import_network(options.model) if options.model else None
    if options.run is None:
        name = options.name or options.model
        member = from_weights(options.weights, name, None, overrides, options.entry, make)
    else:
        path = local_run(options.run, "run")
        member = from_run(path, None, overrides, None, options.model, make, options.ema)
    require_photographs(member.dataset, overrides)
    return member


def classify(member: EvalModel, paths: Sequence[str], options: Options) -> list[Prediction]:
    """By image, in the given order: {"image", "classes": [{"label", "probability"}]} or "error"."""
    images = open_images(paths, member.dataset)
    protocol = resolve_protocol("1-crop", member.name, member.crop, member.resize, (), None)
    where = Partitioner(make_mesh())
    with display(TITLE, {TITLE: len(images.paths)}, "image") as report:
        shown = functools.partial(report, TITLE)
        scores = predict(member, images.split, protocol, where, options.batch_size, shown)
    names, rows = label_names(member.dataset), dict(zip(images.paths, scores, strict=True))
    return [
        {"image": path, "classes": _best(rows[path], names, options.top)}
        if path in rows
        else {"image": path, "error": images.undecodable[path]}
        for path in paths
    ]


def _best(scores: np.ndarray, names: Sequence[str], top: int) -> list[dict[str, Any]]:
    order = np.argsort(-scores, kind="stable")[:top]
    return [{"label": names[i], "probability": float(np.exp(scores[i]))} for i in order]


def _line(found: Prediction) -> str:
    if "error" in found:
        return f"{found['image']}: cannot be decoded ({found['error']})"
    shown = (f"{each['label']} {100 * each['probability']:.1f} %" for each in found["classes"])
    return f"{found['image']}: {', '.join(shown)}"


def _csv(found: Sequence[Prediction]) -> str:
    """A row for each image and class; one with an error for an image that cannot be decoded."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "rank", "label", "probability", "error"])
    for each in found:
        if "error" in each:
            rows.writerow([each["image"], "", "", "", each["error"]])
        for rank, one in enumerate(each.get("classes", ()), 1):
            rows.writerow([each["image"], rank, one["label"], f"{one['probability']:.6g}", ""])
    return text.getvalue()


def _json(found: Sequence[Prediction]) -> str:
    return json.dumps(list(found), indent=1, ensure_ascii=False) + "\n"
