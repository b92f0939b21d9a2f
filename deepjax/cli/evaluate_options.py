"""The options of `deepjax evaluate`, and the test split and protocol that they mean."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from deepjax.data import Dataset, Split, load_split
from deepjax.data.encoded_split import EncodedSplit
from deepjax.errors import InputError, require
from deepjax.evaluation.models import PreprocessingOverrides, require_photographs
from deepjax.evaluation.predict import EvalModel
from deepjax.evaluation.protocols import Average, Protocol, resolve_protocol
from deepjax.training.distributed.cluster import Hosts
from deepjax.training.run_directory.data_identity import require_same_classes
from deepjax.training.run_directory.tested_data import (
    TrainedOn,
    require_not_trained_on,
    tested_data,
)

ProtocolName = Literal[
    "1-crop", "10-crop", "10-crop-whole", "144-crop", "dense", "multi-scale", "multi-crop"
]

USUAL_OPTIONS = {
    "network": {
        "NAME": "a network of `deepjax models`, for --weights",
        "--weights": "files, folders or repositories; several: an ensemble",
        "--run": "run directories of `deepjax train`",
        "--models": "patterns of many networks, for a table",
    },
    "data": {
        "--dataset": "default that of the run, or imagenet2012",
        "--also": "more data sets of these classes, such as imagenet_v2",
        "--data-dir": "where prepared data sets are",
    },
    "protocol": {
        "--protocol": "1-crop, 10-crop, 144-crop, dense, multi-scale ...",
        "--crop": "pixels a side; --resize: of the shorter side before the crop",
        "--batch-size": "crops per step, over all devices (default: 64)",
        "--precision": "float32 or bfloat16",
    },
    "output": {
        "--output-dir": "folder for result.json, or for the table",
        "--json": "print the result as JSON",
    },
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Test a network, an ensemble, or many networks, on every image of a data set exactly once."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
    """Name of the network, e.g. resnet50, where --weights do not give it."""
    weights: tuple[str, ...] = ()
    """Files (.safetensors, .npz, .pth), folders (of `deepjax export` too) or repositories such as
    timm/resnet50.a1_in1k; or NAME=SOURCE. Several: an ensemble."""
    entry: str | None = None
    """Which network of a file that holds several, by the prefix of its tensors, e.g. model_ema."""
    model: str = ""
    """package.module:Class of the runs' network, where it is your own: it is imported only if it is
    named here."""
    run: tuple[Path, ...] = ()
    """Run directories of `deepjax train`: the newest checkpoint."""
    models: tuple[str, ...] = ()
    """Patterns of many networks, for a table in place of one result: names with public weights
    ('resnet*', all), public weights ('timm/resnet50.*'), or run directories ('runs/*')."""
    weights_dir: Path | None = None
    """Folder with NAME.safetensors (.npz, .pth) for the networks of --models, in place of public
    weights."""
    ema: bool = True
    """Of runs that were trained with --ema-decay the averaged weights; --no-ema: the parameters of
    the last step."""
    dataset: str = ""
    """Data set to test on; default that of the run or of the exported folder, or imagenet2012. Of
    your own images without a test split, which the network was not trained on, all are tested."""
    also: tuple[str, ...] = ()
    """More data sets of these classes: imagenet_v2, imagenet2012_real, imagenet_a, imagenet_r."""
    protocol: ProtocolName = "1-crop"
    """Which views of an image are averaged; docs/imagenet.md has the table."""
    sides: tuple[int, ...] = ()
    """Shorter sides of the rescaled image in pixels; default the paper's."""
    average: Average | None = None
    """What is averaged over the views; default as in the paper."""
    batch_size: int = 64
    """Crops per step over all devices, or full images of as many pixels; each device has all crops
    of one image or more."""
    overrides: Annotated[PreprocessingOverrides, tyro.conf.arg(name="")] = PreprocessingOverrides()
    data_dir: str | None = None
    """Folder or URL of prepared data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    output_dir: Path | None = None
    """Folder for result.json, or table.csv, table.md and table.json of --models; default
    runs/evaluation-NAME-PROTOCOL, runs/table-DATASET-PROTOCOL. A folder with the result of another
    evaluation is refused; a table is completed."""
    json: bool = False
    """Print the result, or the table, as JSON; messages go to stderr."""
    hosts: Hosts = Hosts()

    def __post_init__(self) -> None:
        single = self.protocol == "1-crop" and not self.sides
        allowed = (
            "0 for a protocol other than 1-crop, and with --sides, which set the shorter sides"
        )
        require(single or not self.overrides.resize, "resize", self.overrides.resize, allowed)
        without = "a prefix only with --weights"
        require(self.entry is None or bool(self.weights), "entry", self.entry, without)
        runs = bool(self.run or self.models)
        require(self.ema or runs, "ema", self.ema, "--no-ema only for runs")
        alone = not (self.name or self.weights or self.run or self.also)
        allowed = "nothing with a NAME, --weights, --run or --also"
        require(not self.models or alone, "models", " ".join(self.models), allowed)
        given = str(self.weights_dir or "")
        require(not given or bool(self.models), "weights_dir", given, "a folder only with --models")


def choose_tested_data(name: str, networks: Sequence[TrainedOn]) -> Dataset:
    """`tested_data`, with its warning printed."""
    dataset, warning = tested_data(name, networks)
    if warning and jax.process_index() == 0:
        print(f"warning: {warning}")
    return dataset


def open_test_split(
    dataset: Dataset, members: list[EvalModel], options: Options
) -> Split | EncodedSplit:
    """The test split of a data set, which must have the members' classes and channels.

    Raises InputError where a member was trained on images of it.
    """
    for member in members:
        require_same_classes(dataset, member.dataset, member.name)
        if member.trained_on is not None:
            require_not_trained_on(dataset, member.trained_on, options.data_dir)
    require_photographs(dataset, options.overrides)
    if not dataset.encoded and options.sides:
        raise InputError(
            f"--sides is for photographs; the images of {dataset.name} are resized to the crop "
            "directly"
        )
    if not dataset.encoded and options.protocol != "1-crop":
        raise InputError(
            f"protocol is {options.protocol!r}; allowed: '1-crop' for {dataset.name}, whose images "
            "are all of one size"
        )
    return load_split(dataset, "test", options.data_dir)


def protocol_for(member: EvalModel, options: Options) -> Protocol:
    """The protocol for a member, its sides in pixels."""
    return resolve_protocol(
        options.protocol, member.name, member.crop, member.resize, options.sides, options.average
    )
