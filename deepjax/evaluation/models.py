"""Networks to be evaluated: public weights or files of them, and runs of our own training."""

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from deepjax.data import Dataset
from deepjax.errors import InputError, require, unknown_name_error
from deepjax.evaluation.predict import EvalModel
from deepjax.evaluation.weights_preprocessing import PUBLIC, Expected
from deepjax.models import create_model, model_info
from deepjax.models.weights.convert import load_pretrained
from deepjax.paths import run_directory, user_path
from deepjax.training.build import model_from
from deepjax.training.config_file import read_config
from deepjax.training.run_dir import open_run

Normalize = Literal["expected", "dataset", "half"]
HALF = (127.5,)  # for every channel


@dataclasses.dataclass(frozen=True)
class PreprocessingOverrides:
    """What is chosen in place of what weights or a run expect; zeros and empty names leave it to them."""

    crop: int = 0
    """Pixels a side of what the network sees; 0: the network's own, or the run's."""
    resize: int = 0
    """Shorter side in pixels from which a single crop is cut; 0: as the weights expect, or 8/7 of the crop."""
    interpolation: Literal["expected", "bilinear", "bicubic"] = "expected"
    """How images are scaled; by default as the weights expect: bilinear but for many of timm's."""
    normalize: Normalize = "expected"
    """By the data set's mean and deviation or by one half; by default as the weights expect."""
    known: str = ""
    """Which public weights a file holds, such as 'torchvision IMAGENET1K_V2', so that images are made ready for them."""
    precision: Literal["expected", "float32", "bfloat16"] = "expected"
    """Type of activations; by default float32, or a run's own."""

    def __post_init__(self) -> None:
        require(self.crop >= 0, "crop", self.crop, "0 (the network's own) or more")
        require(
            self.resize == 0 or self.resize >= self.crop,
            "resize",
            self.resize,
            "0 (as expected), or the crop or more",
        )


def from_weights(
    given: str, name: str, dataset: Dataset, choices: PreprocessingOverrides
) -> EvalModel:
    """A network with weights: `given` is "SOURCE", of the network `name`, or "NAME=SOURCE"; sources as `load_pretrained` has them.

    Raises InputError for an unknown network, for weights that are not the network's, or of another number of classes.
    """
    named = None if user_path(given, "weights").exists() else re.fullmatch(r"(\w+)=(.+)", given)
    name, source = named.groups() if named else (name, given)
    require(bool(name), "weights", given, "a source after the NAME of a network, or NAME=SOURCE")
    fields: dict[str, Any] = {"num_classes": dataset.num_classes}
    if "auxiliary" in {field.name for field in dataclasses.fields(create_model(name))}:
        fields["auxiliary"] = False  # heads take no part in tests
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", ".*drawn anew", UserWarning
        )  # a classifier with nothing to be tested
        try:
            variables = load_pretrained(name, source, **fields)
        except UserWarning as warning:
            raise InputError(
                f"{source} is for other classes than those of {dataset.name} ({warning})"
            ) from None
    dtype = jnp.dtype("float32" if choices.precision == "expected" else choices.precision)
    weights = choices.known or re.sub("^hf[-_]hub:", "", source)
    expected = _expected(name, weights, choices.known)
    crop = choices.crop or (
        model_info(name).input_shape[0] if dataset.encoded else dataset.shape[0]
    )
    if (name, weights) in PUBLIC:
        resize, assumed = _resize_of(
            weights, expected, crop, model_info(name).input_shape[0], choices
        )
    else:
        resize, assumed = choices.resize, _assumed(crop, dataset, choices)
    return EvalModel(
        name=name,
        source=f"{source}, {choices.known}" if choices.known else source,
        model=create_model(name, dtype=dtype, **fields),
        variables=variables,
        dataset=_normalized(dataset, choices.normalize, expected.half),
        crop=crop,
        resize=resize if dataset.encoded else 0,
        stored=_stored(dataset, dataset.shape, choices),
        interpolation=expected.interpolation
        if choices.interpolation == "expected"
        else choices.interpolation,
        assumed=assumed if dataset.encoded else "",
    )


def from_run(
    path: Path,
    dataset: Dataset | None,
    choices: PreprocessingOverrides,
    data_dir: str | None = None,
) -> EvalModel:
    """The network of a run of `experiments/train.py` at its newest checkpoint; its averages where it keeps some (--ema-decay).

    dataset: what it is tested on, default what it was trained on. Raises InputError for a folder that is no run, and for a test on
    other classes than those of the training.
    """
    path = run_directory(path, "run")
    config = read_config(path)
    run = open_run(path, averaged=config.ema_decay > 0, data_dir=data_dir)
    tested = dataset or run.dataset
    (*_, channels), classes = run.dataset.shape, run.dataset.num_classes
    fits = (tested.shape[2], tested.num_classes) == (channels, classes)
    require(
        fits,
        "dataset",
        tested.name,
        f"one of the {classes} classes and {channels} channels that {path} was trained on",
    )
    precise = dataclasses.replace(
        config, precision=config.precision if choices.precision == "expected" else choices.precision
    )
    height, width, _ = config.eval_shape
    square = choices.crop or not tested.encoded or height == width
    require(
        bool(square),
        "crop",
        choices.crop,
        f"a number of pixels: the network was trained on {height} x {width}, no square",
    )
    crop = choices.crop or height
    return EvalModel(
        name=config.model,
        source=f"{path}, step {run.step}{', averages' if config.ema_decay > 0 else ''}",
        model=model_from(precise),
        variables=run.variables,
        dataset=_normalized(run.dataset, choices.normalize, half=False),
        crop=crop,
        resize=choices.resize or round(crop / config.data.eval_crop),
        stored=_stored(tested, config.eval_shape, choices),
        step=run.step,
        interpolation="bilinear" if choices.interpolation == "expected" else choices.interpolation,
    )


def _stored(
    dataset: Dataset, shape: tuple[int, int, int], choices: PreprocessingOverrides
) -> tuple[int, int] | None:
    """Height and width that images stored as arrays are resized to, where they are no square and no other crop is chosen."""
    height, width, _ = shape
    return None if dataset.encoded or choices.crop or height == width else (height, width)


def _resize_of(
    weights: str, expected: Expected, crop: int, own: int, choices: PreprocessingOverrides
) -> tuple[int, str]:
    """The shorter side from which public weights expect a crop, and what is assumed. own: pixels of its own crop."""
    at = {own: expected.resize} | ({288: expected.at_288} if expected.at_288 else {})
    if choices.resize or crop in at:
        return choices.resize or at[crop], ""
    resize = round(expected.resize * crop / own)
    return resize, (
        f"{weights} states no shorter side for crops of {crop}: {resize} assumed for a single crop, in the proportion of "
        f"{expected.resize} for {own}; --resize says otherwise"
    )


def _expected(name: str, source: str, known: str) -> Expected:
    allowed = [source for of, source in PUBLIC if of == name]
    if known and not allowed:
        raise InputError(
            f"known is {known!r}; allowed: '', for {name} has no public weights; --resize, --normalize say what to do"
        )
    if known and known not in allowed:
        raise unknown_name_error(f"public weights of {name}", known, allowed)
    return PUBLIC.get((name, source), Expected(0.0))


def _assumed(crop: int, dataset: Dataset, choices: PreprocessingOverrides) -> str:
    """What is done with the images of weights that are not known, as far as nobody has said it."""
    guesses = {
        "--resize": ""
        if choices.resize
        else f"a shorter side of {round(256 * crop / 224)} for a single crop",
        "--interpolation": "bilinear" if choices.interpolation == "expected" else "",
        "--normalize": f"{dataset.name}'s mean" if choices.normalize == "expected" else "",
    }
    made = {option: guess for option, guess in guesses.items() if guess}
    if not made:
        return ""
    return f"these weights are not known: {', '.join(made.values())} assumed; {', '.join(['--known', *made])} say otherwise"


def _normalized(dataset: Dataset, normalize: Normalize, half: bool) -> Dataset:
    if normalize == "half" or (normalize == "expected" and half):
        return dataclasses.replace(dataset, mean=HALF, std=HALF)
    return dataset
