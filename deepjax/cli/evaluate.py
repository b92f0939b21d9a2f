"""Test networks as their papers did, on every image of a set exactly once.

    deepjax evaluate resnet50 --weights timm/resnet50.a1_in1k
    deepjax evaluate vgg16 --weights vgg16.safetensors --protocol multi-scale --also imagenet_v2 imagenet2012_real
    deepjax evaluate --weights resnet50=a.safetensors resnet101=b.safetensors          # an ensemble
    deepjax evaluate --run runs/resnet50                                               # of our own training

The published numbers stand beside the measured ones; result.json keeps both.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.command_line import parse
from deepjax.data import Dataset, Split, dataset_info, load_split
from deepjax.data.encoded_split import EncodedSplit
from deepjax.errors import InputError, require
from deepjax.evaluation.agreement import compare, differences, final_row
from deepjax.evaluation.images import labels_of
from deepjax.evaluation.metrics import ClassificationMetrics, compute_metrics, format_metrics, row
from deepjax.evaluation.models import PreprocessingOverrides, from_run, from_weights
from deepjax.evaluation.paper_results import published
from deepjax.evaluation.predict import EvalModel, ensemble, predict
from deepjax.evaluation.protocols import Average, Protocol, protocol_of
from deepjax.evaluation.result_file import RESULT, check_result_folder, evaluation_spec
from deepjax.paths import run_directory, user_path
from deepjax.progress import display
from deepjax.study.report.html import provenance
from deepjax.training.config_file import write_text
from deepjax.training.distributed.cluster import Hosts, initialize_distributed
from deepjax.training.distributed.collectives import on_primary
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.loop import say_on_stderr
from deepjax.training.run_lock import hold

ProtocolName = Literal[
    "1-crop", "10-crop", "10-crop-whole", "144-crop", "dense", "multi-scale", "multi-crop"
]


@dataclasses.dataclass(frozen=True)
class Options:
    """Test a network, or several as an ensemble, on every image of a set exactly once."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
    """Name of the network, e.g. resnet50, where --weights do not say it."""
    weights: tuple[str, ...] = ()
    """Files (.safetensors, .npz, .pth), folders, repositories such as timm/resnet50.a1_in1k; or NAME=one. Several: an ensemble."""
    run: tuple[Path, ...] = ()
    """Run directories of `deepjax train`: their newest checkpoints, their averages where --ema-decay was on."""
    dataset: str = ""
    """What is tested on; default a run's own, or imagenet2012."""
    also: tuple[str, ...] = ()
    """Further sets of the same classes: imagenet_v2, imagenet2012_real, imagenet_a, imagenet_r."""
    protocol: ProtocolName = "1-crop"
    """Which views of an image are averaged; docs/imagenet.md has the table."""
    sides: tuple[int, ...] = ()
    """Shorter sides of the rescaled image in pixels; default the paper's."""
    average: Average | None = None
    """What is averaged over the views; default as the paper did."""
    batch_size: int = 64
    """Crops at once over all devices, or whole images of as many pixels; of each device all crops of an image, or more."""
    choices: Annotated[PreprocessingOverrides, tyro.conf.arg(name="")] = PreprocessingOverrides()
    data_dir: str | None = None
    """Where prepared data sets live; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    output_dir: Path | None = None
    """Folder of result.json; default runs/evaluation-NAME-PROTOCOL. One that holds another evaluation is refused."""
    hosts: Hosts = Hosts()

    def __post_init__(self) -> None:
        single = self.protocol == "1-crop" and not self.sides
        allowed = (
            "0 for a protocol other than 1-crop, and beside --sides, which choose the shorter sides"
        )
        require(single or not self.choices.resize, "resize", self.choices.resize, allowed)


def start(arguments: Sequence[str]) -> None:
    """The command: parse its options, then evaluate."""
    main(parse(Options, arguments))


def main(options: Options) -> None:
    """Predict, score, print, write."""
    began = time.monotonic()
    options = dataclasses.replace(
        options, run=tuple(run_directory(path, "run") for path in options.run)
    )
    initialize_distributed(options.hosts)
    enable_compilation_cache()
    members = gathered(options)
    names = tuple(dict.fromkeys((options.dataset or members[0].dataset.name, *options.also)))
    splits = {
        name: opened(dataset_info(name), members, options) for name in names
    }  # all, before hours of work
    about = evaluation_spec(
        members, [protocol_for(member, options) for member in members], options.choices.precision
    )
    out = user_path(options.output_dir or default_folder(members, options), "output_dir")
    with hold(out, say_on_stderr):
        on_primary(lambda: check_result_folder(out, about, names))
        predict_and_write(members, splits, about, out, options, began)


def predict_and_write(
    members: list[EvalModel],
    splits: dict[str, Split | EncodedSplit],
    about: list[dict[str, Any]],
    out: Path,
    options: Options,
    began: float,
) -> None:
    """Every set predicted, scored and printed; result.json."""
    for member in members:
        if member.assumed and jax.process_index() == 0:
            print(f"{member.source}: {member.assumed}")
    rows, agreement = [], lambda: None
    for name, split in splits.items():
        scores = predicted(members, split, f"{name}, {options.protocol}", options)
        if jax.process_index() == 0:
            labels = labels_of(split)
            found = compute_metrics(scores, labels, dataset_info(name))
            rows.append(reported(found, members, options))
            if options.run and name == members[0].dataset.name:
                agreement = functools.partial(agree, found, scores, labels, split, members, options)
    if jax.process_index() == 0:
        hardware = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        result = {"evaluation": about, "sets": rows} | provenance(
            time.monotonic() - began, hardware
        )
        write_text(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        print(
            f"{out / RESULT}: {' + '.join(f'{member.name} ({member.source})' for member in members)}"
        )
    on_primary(agreement)  # last: a result that does not agree is written all the same


def gathered(options: Options) -> list[EvalModel]:
    """The networks that are tested; of public weights on ImageNet's classes, of runs on their own."""
    of_runs = dataset_info(options.dataset) if options.dataset else None
    members = [from_run(path, of_runs, options.choices, options.data_dir) for path in options.run]
    trained_on = sorted({member.dataset.name for member in members})
    require(
        len(trained_on) < 2 or bool(options.dataset),
        "dataset",
        options.dataset,
        f"one of {', '.join(trained_on)}, of the runs",
    )
    dataset = of_runs or dataset_info(members[0].dataset.name if members else "imagenet2012")
    members += [
        from_weights(given, options.name, dataset, options.choices) for given in options.weights
    ]
    if not members:
        raise InputError(
            "nothing is given to test; allowed: --weights SOURCE after the NAME of a network, --run DIRECTORY"
        )
    return members


def opened(dataset: Dataset, members: list[EvalModel], options: Options) -> Split | EncodedSplit:
    """The test images of a set of the members' classes and channels."""
    for member in members:
        (*_, channels), classes = member.dataset.shape, member.dataset.num_classes
        fits = (dataset.shape[2], dataset.num_classes) == (channels, classes)
        require(
            fits,
            "dataset",
            dataset.name,
            f"sets of the {classes} classes and {channels} channels of {member.name}",
        )
    if not dataset.encoded and (options.sides or options.choices.resize):
        raise InputError(
            f"--sides and --resize are for photographs; those of {dataset.name} are resized to the crop as they are"
        )
    if not dataset.encoded and options.protocol != "1-crop":
        raise InputError(
            f"protocol is {options.protocol!r}; allowed: '1-crop' for {dataset.name}, whose images are all of one size"
        )
    return load_split(dataset, "test", options.data_dir)


def predicted(
    members: list[EvalModel], split: Split | EncodedSplit, title: str, options: Options
) -> np.ndarray:
    """Every member on every image of a set: log-probabilities, of their mean where they are several."""
    spread = Partitioner(make_mesh())
    protocols = [protocol_for(member, options) for member in members]
    tasks = {f"{i + 1}. {member.name}": member for i, member in enumerate(members)}
    totals = {
        task: len(split) * (len(of.sides) if of.dense else 1)
        for task, of in zip(tasks, protocols, strict=True)
    }
    shown = display(title, totals, "image")
    predictions = []
    with shown if jax.process_index() == 0 else contextlib.nullcontext(lambda *_: None) as report:
        for (task, member), protocol in zip(tasks.items(), protocols, strict=True):
            predictions.append(
                predict(
                    member,
                    split,
                    protocol,
                    spread,
                    options.batch_size,
                    functools.partial(report, task),
                )
            )
    return ensemble(predictions)


def reported(
    found: ClassificationMetrics, members: list[EvalModel], options: Options
) -> dict[str, Any]:
    """Print what was found on a set, and what papers say beside it; returns the row of result.json."""
    alone = len(members) == 1 and found.dataset == "imagenet2012"  # what papers speak of
    beside = published(members[0].name, options.protocol) if alone else []
    print("\n".join(format_metrics(found, beside)))
    return row(found) | {"published": [dataclasses.asdict(each) for each in beside]}


def agree(
    found: ClassificationMetrics,
    scores: np.ndarray,
    labels: np.ndarray,
    split: Split | EncodedSplit,
    members: list[EvalModel],
    options: Options,
) -> None:
    """Print whether a run's own test set gave what its final row says; InputError where it did not and nothing explains it."""
    path, member = options.run[0], members[0]
    final = final_row(path)
    if len(members) > 1 or final is None:
        reason = "an ensemble" if len(members) > 1 else "its training has not ended"
        print(f"not compared with the final row of {path}: {reason}")
        return
    precision = options.choices.precision
    different = differences(path, final, member, protocol_for(member, options), precision, split)
    print(compare(path, final, found, scores, labels, different))


def protocol_for(member: EvalModel, options: Options) -> Protocol:
    """The protocol in pixels of a member's crops."""
    return protocol_of(
        options.protocol, member.name, member.crop, member.resize, options.sides, options.average
    )


def default_folder(members: list[EvalModel], options: Options) -> Path:
    """Of networks and protocol."""
    names = "-".join(dict.fromkeys(member.name for member in members)).replace("/", "-")
    return Path("runs") / f"evaluation-{names}-{options.protocol}"
