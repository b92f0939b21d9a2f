"""Networks to be evaluated: public weights or files of them, and runs of our own training."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from deepjax.data import Dataset
from deepjax.errors import InputError, require, unknown
from deepjax.evaluation.predict import Member
from deepjax.evaluation.public import PUBLIC, Expected
from deepjax.models import create_model, model_info
from deepjax.models.weights import load_pretrained
from deepjax.training.run_directory import open_run, read_config

Normalize = Literal["expected", "dataset", "half"]
HALF = (127.5, 127.5, 127.5)


@dataclasses.dataclass(frozen=True)
class Choices:
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
        require(self.resize == 0 or self.resize >= self.crop, "resize", self.resize, "0 (as expected), or the crop or more")


def from_weights(given: str, name: str, dataset: Dataset, choices: Choices) -> Member:
    """A network with weights: `given` is "SOURCE", of the network `name`, or "NAME=SOURCE"; sources as `load_pretrained` has them.

    Raises InputError for an unknown network, for weights that are not the network's, or of another number of classes.
    """
    before, _, after = given.partition("=")
    name, source = (before, after) if after else (name, given)
    require(bool(name), "weights", given, "a source after the NAME of a network, or NAME=SOURCE")
    fields: dict[str, Any] = {"num_classes": dataset.num_classes}
    if "auxiliary" in {field.name for field in dataclasses.fields(create_model(name))}:
        fields["auxiliary"] = False  # heads take no part in tests
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a classifier that is drawn anew has nothing to be tested
        try:
            variables = load_pretrained(name, source, **fields)
        except UserWarning as warning:
            raise InputError(f"{source} is for other classes than those of {dataset.name} ({warning})") from None
    dtype = jnp.dtype("float32" if choices.precision == "expected" else choices.precision)
    expected = _expected(name, choices.known or source, choices.known)
    crop = choices.crop or (model_info(name).input_shape[0] if dataset.encoded else dataset.shape[0])
    native = crop == model_info(name).input_shape[0]
    return Member(
        name=name,
        source=f"{source}, {choices.known}" if choices.known else source,
        model=create_model(name, dtype=dtype, **fields),
        variables=variables,
        dataset=_normalized(dataset, choices.normalize, expected.half),
        crop=crop,
        resize=choices.resize or (expected.resize if native and (name, choices.known or source) in PUBLIC else 0),
        interpolation=expected.interpolation if choices.interpolation == "expected" else choices.interpolation,
    )


def from_run(path: Path, dataset: Dataset | None, choices: Choices, data_dir: str | None = None) -> Member:
    """The network of a run of `experiments/train.py` at its newest checkpoint; its averages where it keeps some (--ema).

    dataset: what it is tested on, default what it was trained on. Raises InputError for a folder that is no run, and for a test on
    other classes than those of the training.
    """
    config = read_config(path)
    run = open_run(path, averaged=config.ema > 0, data_dir=data_dir)
    tested = dataset or run.dataset
    fits = tested.num_classes == run.dataset.num_classes
    require(fits, "dataset", tested.name, f"one of the {run.dataset.num_classes} classes that {path} was trained on")
    crop = choices.crop or config.eval_shape[0]
    return Member(
        name=config.model,
        source=f"{path}, step {run.step}{', averages' if config.ema > 0 else ''}",
        model=run.model if choices.precision == "expected" else run.model.clone(dtype=jnp.dtype(choices.precision)),
        variables=run.variables,
        dataset=_normalized(run.dataset, choices.normalize, half=False),
        crop=crop,
        resize=choices.resize or round(crop / config.eval_crop),
        interpolation="bilinear" if choices.interpolation == "expected" else choices.interpolation,
    )


def _expected(name: str, source: str, known: str) -> Expected:
    if known and (name, known) not in PUBLIC:
        raise unknown(f"public weights of {name}", known, [source for of, source in PUBLIC if of == name])
    return PUBLIC.get((name, source), Expected(0.0))


def _normalized(dataset: Dataset, normalize: Normalize, half: bool) -> Dataset:
    if normalize == "half" or (normalize == "expected" and half):
        return dataclasses.replace(dataset, mean=HALF, std=HALF)
    return dataset
