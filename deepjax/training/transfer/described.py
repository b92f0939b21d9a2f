"""What a run directory or an exported folder says of the weights in it."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepjax.data import Dataset
from deepjax.data.own.index import TEST_FRACTION
from deepjax.errors import InputError, describe_error
from deepjax.models import create_model
from deepjax.paths import user_path
from deepjax.storage.url import is_bucket_url
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.config import TrainConfig, is_custom, parse_fields

EXPORTED, FORMAT = "deepjax.json", 1  # as deepjax/evaluation/export/metadata.py writes it
# Fields that change neither the parameters nor the outputs in evaluation.
OF_TRAINING = ("num_classes", "bn_scope", "dropout", "auxiliary_dropout", "initialization")
# DATASET, its split for tests, [:M] and [-N:].
_NAME = re.compile(
    r"(.*?)(?:\[test_fraction=([\d.e-]+)(?:,split_seed=(\d+))?\])?(?:\[:\d+\])?(?:\[-(\d+):\])?"
)


@dataclasses.dataclass(frozen=True)
class WeightsDescription:
    """The network of some weights, and the data that they were trained on."""

    network: str
    fields: Mapping[str, Any]
    """Fields of the network that were set."""
    dataset: str
    label_names: tuple[str, ...]
    """Empty where they are not known."""
    encoded: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Both in units of 0 to 255."""
    layout: str = ""
    """Of an exported folder: "torchvision", "timm", or "deepjax" for paths of variables."""
    crop: int = 0
    shorter_side: int = 0
    """Pixels of the crop of a photograph, and of its shorter side before; 0: not stated."""
    interpolation: str = "bilinear"


def describe_weights(source: str) -> WeightsDescription | None:
    """The description of a run or an exported folder; None for a file and a repository.

    Raises InputError where it cannot be read.
    """
    if is_run(source):
        return _of_run(local_run(source, "weights"))
    return _of_export(user_path(source, "weights")) if _has(source, EXPORTED) else None


def is_run(source: str) -> bool:
    """Whether weights are those of a run directory, which a URL is; False for no valid path."""
    is_folder = _has(source, "config.json") and _has(source, "checkpoints")
    return is_bucket_url(source) or is_folder


def require_same_network(about: WeightsDescription, config: TrainConfig) -> None:
    """Raise InputError for weights of another network, or of one with other fields."""
    mine: dict[str, Any] = parse_fields(config.model_args)
    if config.width:
        mine["width"] = config.width
    theirs: Mapping[str, Any] = about.fields
    differing: list[str] = []
    if about.network == config.model:
        mine, theirs = (_fields(config.model, fields) for fields in (mine, theirs))
        differing = sorted(n for n in {*mine, *theirs} if mine.get(n) != theirs.get(n))
    if about.network != config.model or differing:
        there, here = (
            " ".join([name, *(f"{n}={fields.get(n, 'unset')}" for n in differing or fields)])
            for name, fields in ((about.network, theirs), (config.model, mine))
        )
        raise InputError(
            f"weights is {config.transfer.weights!r}, of {there}; allowed: weights of {here}"
        )


def has_other_classes(about: WeightsDescription, dataset: Dataset) -> bool:
    """Whether a data set has other classes: other names, or where one has none, other data."""
    if about.label_names and dataset.label_names:
        return about.label_names != dataset.label_names
    return _parts(about.dataset)[0] != _parts(dataset.name)[0]


def may_test_on_seen_images(about: WeightsDescription, dataset: Dataset) -> bool:
    """Whether the data are the same, but test images of one may be training images of the other."""
    (theirs, split, held_out), (mine, my_split, my_held_out) = (
        _parts(name) for name in (about.dataset, dataset.name)
    )
    return theirs == mine and (my_split != split or my_held_out > held_out)


def _parts(name: str) -> tuple[str, tuple[float, int], int]:
    """The data set of a name, fraction and seed of its split, training images for tests."""
    found = _NAME.fullmatch(name)
    data, fraction, seed, held_out = found.groups() if found else (name, None, None, None)
    data = os.path.abspath(os.path.expanduser(data)) if "/" in data else data
    return data, (float(fraction or TEST_FRACTION), int(seed or 0)), int(held_out or 0)


def _has(source: str, name: str) -> bool:
    try:
        return (user_path(source, "weights") / name).exists()
    except (InputError, OSError):  # no path, but perhaps a repository; or one that is not readable
        return False


def _fields(network: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a network by which weights differ; of a registered one with its defaults."""
    fields = {name: value for name, value in fields.items() if name not in OF_TRAINING}
    if is_custom(network):
        return fields
    made = create_model(network, **fields)
    names = {field.name for field in dataclasses.fields(made)} - {"parent", "name"}
    return {name: getattr(made, name) for name in names}


def _of_run(path: Path) -> WeightsDescription:
    try:
        config, data = (_stored(path / name) for name in ("config.json", "dataset.json"))
        fields = parse_fields(config.get("model_args", ()))
        if config.get("width"):
            fields["width"] = config["width"]
        return WeightsDescription(
            network=config["model"],
            fields=fields,
            dataset=config["dataset"],
            label_names=tuple(data.get("label_names", ())),
            encoded=bool(data.get("encoded")),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is no run that can be read ({describe_error(error)})") from error


def _of_export(path: Path) -> WeightsDescription:
    about = _stored(path / EXPORTED)
    try:
        if about["format"] != FORMAT:
            raise InputError(
                f"{path / EXPORTED} has format {about['format']!r}; allowed: {FORMAT}; use the "
                "deepjax that wrote it"
            )
        data = about["dataset"]
        return WeightsDescription(
            network=about["network"],
            fields={
                name: tuple(value) if isinstance(value, list) else value
                for name, value in about["fields"].items()
            },
            dataset=data["name"],
            label_names=tuple(data["label_names"]),
            encoded=data["encoded"],
            mean=tuple(255 * value for value in data["mean"]),
            std=tuple(255 * value for value in data["std"]),
            layout=about["layout"],
            crop=about["crop"],
            shorter_side=about["shorter_side"],
            interpolation=about["interpolation"],
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path / EXPORTED} cannot be read ({describe_error(error)}); export the network again"
        ) from error


def _stored(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError where it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({describe_error(error)})") from error
