"""Networks to evaluate: from public weights, from files of weights, or from run directories."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from deepjax.data import Dataset, dataset_info
from deepjax.errors import InputError, require, unknown_name_error
from deepjax.evaluation.crops import Interpolation
from deepjax.evaluation.export.metadata import PATHS, Metadata, read_metadata
from deepjax.evaluation.predict import EvalModel
from deepjax.models import create_model, model_info
from deepjax.models.weights.convert import load_pretrained, read_pretrained
from deepjax.models.weights.files import read_tensors
from deepjax.models.weights.variable_names import from_paths
from deepjax.models.weights_table import PUBLIC_WEIGHTS, PublicWeights
from deepjax.paths import user_path
from deepjax.training.checkpoint.run_copy import local_run, name_of_run
from deepjax.training.config import is_custom
from deepjax.training.custom_network import make_network
from deepjax.training.network import ModelFactory, model_from
from deepjax.training.run_directory.config_file import read_config
from deepjax.training.run_directory.data_identity import require_same_classes
from deepjax.training.run_directory.run_dir import open_run
from deepjax.training.run_directory.tested_data import TrainedOn
from deepjax.training.transfer.frozen_batch_norm import FrozenBatchNorm

Normalize = Literal["expected", "dataset", "half"]
HALF = (127.5,)  # for every channel


@dataclasses.dataclass(frozen=True)
class PreprocessingOverrides:
    """Preprocessing set by the user; 0, "" and "expected" keep what weights or run expect."""

    crop: int = 0
    """Crop size in pixels, the network's input size; 0: the network's default, or the run's."""
    resize: int = 0
    """Shorter side in pixels of the image before a single crop; 0: as the weights expect, or 8/7 of
    the crop.
    """
    interpolation: Literal["expected", "bilinear", "bicubic"] = "expected"
    """Interpolation of the resizing; by default as the weights expect."""
    normalize: Normalize = "expected"
    """Mean and std: those of the data set that is tested, or 0.5 and 0.5; by default as the weights
    or the run expect."""
    known: str = ""
    """Which public weights a file holds, for their preprocessing: 'torchvision IMAGENET1K_V2'."""
    precision: Literal["expected", "float32", "bfloat16"] = "expected"
    """Dtype of the activations; by default float32, or the run's."""

    def __post_init__(self) -> None:
        require(self.crop >= 0, "crop", self.crop, "0 (the network's own) or more")
        require(
            self.resize == 0 or self.resize >= self.crop,
            "resize",
            self.resize,
            "0 (as expected), or the crop or more",
        )


def require_photographs(dataset: Dataset, overrides: PreprocessingOverrides) -> None:
    """Raise InputError for options of photographs where the images are arrays."""
    given = overrides.resize or overrides.interpolation != "expected"
    if given and not dataset.encoded:
        raise InputError(
            f"--resize and --interpolation are for photographs; the images of {dataset.name} are "
            "resized to the crop directly"
        )


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a network; the fields are those of `EvalModel`."""

    dataset: Dataset
    crop: int
    resize: int
    interpolation: Interpolation
    stored: tuple[int, int] | None
    assumed: str


def from_weights(
    given: str,
    name: str,
    dataset: Dataset | None,
    overrides: PreprocessingOverrides,
    entry: str | None = None,
    make: ModelFactory | None = None,
) -> EvalModel:
    """A network with weights from a file, a folder or a repository, read by `load_pretrained`.

    given: "SOURCE", of the network `name`, or "NAME=SOURCE". dataset: the test set, by default
    ImageNet. A folder of `deepjax export` knows its network, data set and preprocessing; `make`:
    the maker of its network where that is not in the registry. entry: which network of a file that
    holds several, such as "model_ema". Raises InputError for an unknown network, for weights of
    another network or number of classes, for unknown `known` weights, and for `known` or `entry`
    with an exported folder.
    """
    named = None if user_path(given, "weights").exists() else re.fullmatch(r"(\w+)=(.+)", given)
    name, source = named.groups() if named else (name, given)
    if (about := read_metadata(user_path(source, "weights"))) is not None:
        require(entry is None, "entry", entry, f"none for {source}, which holds one network")
        return _from_exported(about, name, source, dataset, overrides, make)
    dataset = dataset or dataset_info("imagenet2012")
    require(bool(name), "weights", given, "a source after the NAME of a network, or NAME=SOURCE")
    fields: dict[str, Any] = {"num_classes": dataset.num_classes}
    if "auxiliary" in {field.name for field in dataclasses.fields(create_model(name))}:
        fields["auxiliary"] = False
    preprocessing = preprocessing_for(name, source, dataset, overrides)
    precision = "float32" if overrides.precision == "expected" else overrides.precision
    return EvalModel(
        name=name,
        source=_describe_source(source, overrides.known, entry),
        model=create_model(name, dtype=jnp.dtype(precision), **fields),
        variables=_load(name, source, dataset, entry, fields),
        precision=precision,
        **vars(preprocessing),
    )


def _from_exported(
    about: Metadata,
    name: str,
    source: str,
    tested: Dataset | None,
    overrides: PreprocessingOverrides,
    make: ModelFactory | None,
) -> EvalModel:
    """The network of a folder that `deepjax export` wrote."""
    require(name in ("", about.network), "name", name, f"{about.network}, of {source}")
    _refuse_known(overrides, source)
    require_same_classes(tested or about.dataset, about.dataset, source)
    if is_custom(about.network) and make is None:
        raise InputError(
            f"the network of {source} is {about.network!r}, which is not imported unless it is "
            f"named again; give --model {about.network}"
        )
    fields: dict[str, Any] = {**about.fields}
    if about.layout == PATHS:
        make = make or functools.partial(create_model, about.network)
        plain = make_network(make, fields)
        variables = from_paths(plain, about.input_shape, read_tensors(source))
    else:
        make = functools.partial(create_model, about.network)
        variables = load_pretrained(about.network, source, **fields)
    precision = about.precision if overrides.precision == "expected" else overrides.precision
    crop = overrides.crop or about.crop
    return EvalModel(
        name=about.network,
        source=f"{source}, of {about.source}",
        model=make_network(make, {"dtype": jnp.dtype(precision)} | fields),
        variables=variables,
        dataset=_normalized(about.dataset, tested, overrides.normalize),
        crop=crop,
        resize=overrides.resize or round(about.shorter_side * crop / about.crop),
        stored=None if overrides.crop else about.resized,
        interpolation=about.interpolation
        if overrides.interpolation == "expected"
        else overrides.interpolation,
        assumed=about.assumed,
        trained_on=TrainedOn(source, about.dataset, about.fingerprint),
        precision=precision,
    )


def preprocessing_for(
    name: str, source: str, dataset: Dataset, overrides: PreprocessingOverrides
) -> Preprocessing:
    """Preprocessing for the weights `source` of a network: overrides, else the table's row.

    Raises InputError for unknown `overrides.known`.
    """
    rows = PUBLIC_WEIGHTS.get(name, {})
    if overrides.known:
        _check_known(name, overrides.known, rows)
    weights = overrides.known or re.sub("^hf[-_]hub:", "", source)
    row, input_size = rows.get(weights), model_info(name).input_shape[0]
    crop = overrides.crop or (input_size if dataset.encoded else dataset.shape[0])
    if row is None:
        resize, assumed = overrides.resize, _assumptions(crop, dataset, overrides)
    else:
        resize, assumed = _shorter_side(weights, row, crop, input_size, overrides)
    expected = row.interpolation if row else "bilinear"
    return Preprocessing(
        dataset=_normalized(dataset, dataset, overrides.normalize, row is not None and row.half),
        crop=crop,
        resize=resize if dataset.encoded else 0,
        interpolation=expected
        if overrides.interpolation == "expected"
        else overrides.interpolation,
        stored=_stored(dataset, dataset.shape, overrides),
        assumed=assumed if dataset.encoded else "",
    )


def _describe_source(source: str, known: str, entry: str | None) -> str:
    """What result.json says of the weights."""
    parts = (source, known, "" if entry is None else f"entry {entry!r}")
    return ", ".join(part for part in parts if part)


def _load(
    name: str, source: str, dataset: Dataset, entry: str | None, fields: dict[str, Any]
) -> Any:
    """Variables; InputError for a classifier of other classes, which would be untrained."""
    found = read_pretrained(name, source, entry=entry, **fields)
    if found.new:
        raise InputError(
            f"{source} is for other classes than those of {dataset.name} ({found.note})"
        )
    return found.variables


def from_run(
    path: Path,
    dataset: Dataset | None,
    overrides: PreprocessingOverrides,
    data_dir: str | None = None,
    network: str = "",
    make: ModelFactory | None = None,
    ema: bool = True,
) -> EvalModel:
    """The network of a run directory at its newest checkpoint.

    dataset: the test set, by default that of the training. network, make: name and maker of a
    network that is not in the registry, which has to be that of the run. ema: the averages of a run
    with --ema-decay, not the parameters of its last step. Raises InputError for a folder that is no
    run directory, for a data set of other classes than those of the training, and for
    `overrides.known`.
    """
    path = local_run(path, "run")
    named = name_of_run(path)
    _refuse_known(overrides, named)
    config = read_config(path)
    require(network in ("", config.model), "model", network, f"{config.model}, of {named}")
    keeps_averages = config.ema_decay > 0
    averaged = ema and keeps_averages
    run = open_run(path, averaged=averaged, data_dir=data_dir, make=make)
    tested = dataset or run.dataset
    require_same_classes(tested, run.dataset, named)
    precision = config.precision if overrides.precision == "expected" else overrides.precision
    model = model_from(dataclasses.replace(config, precision=precision), make)
    height, width, _ = config.eval_shape
    square = overrides.crop or not tested.encoded or height == width
    require(
        bool(square),
        "crop",
        overrides.crop,
        f"a number of pixels: the network was trained on {height} x {width}, not a square",
    )
    crop = overrides.crop or height
    return EvalModel(
        name=config.model,
        source=f"{named}, step {run.step}"
        + (", averages" if averaged else ", not the averages" if keeps_averages else ""),
        # Frozen batch norms differ in training alone.
        model=model.unfrozen if isinstance(model, FrozenBatchNorm) else model,
        variables=run.variables,
        dataset=_normalized(run.dataset, dataset, overrides.normalize),
        crop=crop,
        resize=overrides.resize or round(crop / config.data.eval_crop),
        stored=_stored(tested, config.eval_shape, overrides),
        step=run.step,
        averaged=averaged,
        trained_on=run.trained_on,
        interpolation="bilinear"
        if overrides.interpolation == "expected"
        else overrides.interpolation,
        precision=precision,
    )


def _stored(
    dataset: Dataset, shape: tuple[int, int, int], overrides: PreprocessingOverrides
) -> tuple[int, int] | None:
    """Height and width to which stored arrays are resized, if not square and `crop` is not set."""
    height, width, _ = shape
    return None if dataset.encoded or overrides.crop or height == width else (height, width)


def _shorter_side(
    weights: str,
    row: PublicWeights,
    crop: int,
    input_size: int,
    overrides: PreprocessingOverrides,
) -> tuple[int, str]:
    """The shorter side from which public weights expect a crop, and what is assumed about it."""
    stated = {input_size: row.resize} | ({288: row.resize_288} if row.resize_288 else {})
    if overrides.resize or crop in stated:
        return overrides.resize or stated[crop], ""
    resize = round(row.resize * crop / input_size)
    return resize, (
        f"{weights} states no shorter side for crops of {crop}: {resize} assumed for a single "
        f"crop, in proportion to {row.resize} for {input_size}; override it with --resize"
    )


def _refuse_known(overrides: PreprocessingOverrides, source: str) -> None:
    """Raise InputError for `known` with a source that states its preprocessing."""
    require(not overrides.known, "known", overrides.known, f"'' for {source}, which states its own")


def _check_known(name: str, known: str, rows: Mapping[str, PublicWeights]) -> None:
    if not rows:
        raise InputError(
            f"known is {known!r}; allowed: '', as {name} has no public weights; set --resize and "
            "--normalize instead"
        )
    if known not in rows:
        raise unknown_name_error(f"public weights of {name}", known, list(rows))


def _assumptions(crop: int, dataset: Dataset, overrides: PreprocessingOverrides) -> str:
    """The preprocessing assumed for weights that are not in the table, as a message."""
    side = f"a shorter side of {round(256 * crop / 224)} for a single crop"
    assumed = {
        "--resize": "" if overrides.resize else side,
        "--interpolation": "bilinear" if overrides.interpolation == "expected" else "",
        "--normalize": f"{dataset.name}'s mean" if overrides.normalize == "expected" else "",
    }
    made = {option: value for option, value in assumed.items() if value}
    if not made:
        return ""
    return (
        f"these weights are not known: {', '.join(made.values())} assumed; override with "
        f"{', '.join(['--known', *made])}"
    )


def _normalized(
    dataset: Dataset, tested: Dataset | None, normalize: Normalize, half: bool = False
) -> Dataset:
    """The data set of a network, with the mean and std that are chosen.

    tested: the test set, by default that data set as the catalogue has it. half: the weights expect
    0.5 and 0.5.
    """
    if normalize == "half" or (normalize == "expected" and half):
        return dataclasses.replace(dataset, mean=HALF, std=HALF)
    if normalize == "dataset":
        own = tested or dataset_info(dataset.name)
        return dataclasses.replace(dataset, mean=own.mean, std=own.std)
    return dataset
