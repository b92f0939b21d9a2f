"""Export a network with its weights, classes and preprocessing into a folder for other programs.

    deepjax export runs/photos --output-dir exported
    deepjax export runs/photos --output-dir exported --format safetensors stablehlo
    deepjax export resnet50 --weights timm/resnet50.a1_in1k --output-dir exported
    deepjax export vgg16 --weights v.pth --known 'torchvision IMAGENET1K_V1' --output-dir exported

The folder has weights, metadata and a model card.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from deepjax.command_line import parse
from deepjax.data.label_names import label_names
from deepjax.errors import InputError, require, unknown_name_error
from deepjax.evaluation.agreement import final_row
from deepjax.evaluation.export.folder import Format, Origin, check_new_folder, export_network
from deepjax.evaluation.export.metadata import read_metadata
from deepjax.evaluation.models import (
    PreprocessingOverrides,
    from_run,
    from_weights,
    require_photographs,
)
from deepjax.evaluation.predict import EvalModel
from deepjax.help_page import HelpPage
from deepjax.models import list_models
from deepjax.models.weights_table import PUBLIC_WEIGHTS
from deepjax.paths import user_path
from deepjax.progress import say_on_stderr
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.custom_network import import_network
from deepjax.training.network import network_fields
from deepjax.training.run_directory.average import read_average
from deepjax.training.run_directory.command import changed_options
from deepjax.training.run_directory.config_file import read_config
from deepjax.training.transfer.described import is_run

_METRICS = ("test_error", "test_top5_error", "test_loss", "test_images", "step")
USUAL_OPTIONS = {
    "network": {
        "RUN|NAME": "run directory of `deepjax train`, or a network for --weights",
        "--weights": "a file, a folder or a repository",
        "--known": "which public weights a file holds, for their preprocessing",
        "--model": "package.module:Class, where it is your own",
    },
    "output": {
        "--output-dir": "a new folder",
        "--format": "safetensors, stablehlo or both (default: safetensors)",
        "--layout": "names of the tensors: default, torchvision or timm",
        "--license": "of the weights, for the model card",
    },
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a folder with weights, metadata and a model card; StableHLO too, if asked for."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|NAME")]
    """Run directory of `deepjax train`: its newest checkpoint, with averaged weights if any; or
    the name of a network, for --weights."""
    output_dir: Path
    """Folder to write; one that has files is refused."""
    weights: str = ""
    """A file, a folder or a repository of weights for ImageNet's classes; or a folder of `deepjax
    export`."""
    entry: str | None = None
    """Which network of a file that holds several, by the prefix of its tensors, e.g. model_ema."""
    overrides: Annotated[PreprocessingOverrides, tyro.conf.arg(name="")] = PreprocessingOverrides()
    format: tuple[Format, ...] = ("safetensors",)
    """Forms of the network: weights as safetensors, and a StableHLO program for CPU, GPU and TPU,
    which needs the extra `export`."""
    layout: Literal["default", "torchvision", "timm"] = "default"
    """Names of the tensors; default torchvision's where it has the network."""
    license: str = "unknown"
    """Licence of the weights, for the model card."""
    model: str = ""
    """package.module:Class of the network, where it is your own."""

    def __post_init__(self) -> None:
        require(bool(self.format), "format", self.format, "safetensors, stablehlo or both")
        valid = bool(self.license) and self.license.isprintable()
        require(valid, "license", self.license, "text of one line, such as apache-2.0")
        without = "a prefix only with --weights"
        require(self.entry is None or bool(self.weights), "entry", self.entry, without)


def start(arguments: Sequence[str]) -> None:
    """Parse the options, load, write, print the files."""
    options = parse(Options, arguments, page=HelpPage(str(__doc__), USUAL_OPTIONS))
    out = user_path(options.output_dir, "output_dir")
    check_new_folder(out)
    member, origin = open_source(options)
    require_photographs(member.dataset, options.overrides)
    if member.assumed:
        say_on_stderr(f"{member.source}: {member.assumed}")
    labels = tuple(label_names(member.dataset))
    member = dataclasses.replace(
        member, dataset=dataclasses.replace(member.dataset, label_names=labels)
    )
    layout = None if options.layout == "default" else options.layout
    for name in export_network(member, origin, out, options.format, layout):
        print(f"{out / name}: {(out / name).stat().st_size:,} bytes")
    print(f"{member.name} ({member.source})")


def open_source(options: Options) -> tuple[EvalModel, Origin]:
    """The network of a run or of weights, and where it is from."""
    overrides, name = options.overrides, options.source
    make = import_network(options.model) if options.model else None
    if options.weights:
        member = from_weights(options.weights, name, None, overrides, options.entry, make)
        origin = _origin_of_weights(options, member)
    else:
        if not is_run(name):
            _refuse(name)
        path = local_run(name, "source")
        config, average = read_config(path), _average(path)
        member = from_run(path, None, overrides, None, options.model, make)
        averages = f", averages of --ema-decay {config.ema_decay}" if config.ema_decay else ""
        source = f"{name}, {average}" if average else f"run {name}, step {member.step:,}{averages}"
        member = dataclasses.replace(member, source=source)
        recipe, metrics = changed_options(config), _measured(path, member.step)
        origin = Origin(network_fields(config), recipe, metrics, options.license, average)
    if overrides != PreprocessingOverrides(known=overrides.known):
        origin = dataclasses.replace(origin, metrics={})  # which are those of other images
    return member, origin


def _average(path: Path) -> str:
    """Of an average of checkpoints: which they are, by the names of the runs; else ""."""
    averaged = read_average(path)
    if averaged is None:
        return ""
    named = tuple((Path(run).name, step) for run, step in averaged.checkpoints)
    return dataclasses.replace(averaged, checkpoints=named).describe()


def _refuse(source: str) -> None:
    """Raise InputError for what is no run directory."""
    if source in list_models():
        raise InputError(f"{source} has no weights; give --weights SOURCE, or a run directory")
    path = user_path(source, "source")
    if "/" not in source and not path.exists():
        what = "network or run directory"
        raise unknown_name_error(what, source, list_models(), listed_by="deepjax models")
    raise InputError(
        f"{path} is no run directory with checkpoints; allowed: the --output-dir folder of "
        "`deepjax train`, or the name of a network with --weights"
    )


def _measured(path: Path, step: int) -> Mapping[str, Any]:
    """Metrics of a run's final row, if it is of this step; else none."""
    final = final_row(path)
    if final is None or final["step"] != step:
        return {}
    return {name: final[name] for name in _METRICS if name in final}


def _origin_of_weights(options: Options, member: EvalModel) -> Origin:
    """What an exported folder says of its weights; of public ones, what their source states."""
    about = read_metadata(user_path(options.weights, "weights"))
    if about is not None:
        licence = about.licence if options.license == "unknown" else options.license
        return Origin(about.fields, about.recipe, about.metrics, licence, about.average)
    known = options.overrides.known or re.sub("^hf[-_]hub:", "", options.weights)
    row = PUBLIC_WEIGHTS.get(member.name, {}).get(known)
    stated = {} if row is None else {"stated_top1": row.top1, "stated_top5": row.top5}
    return Origin({"num_classes": member.dataset.num_classes}, {}, stated, options.license)
