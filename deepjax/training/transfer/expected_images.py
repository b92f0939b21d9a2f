"""The images that weights expect: mean and std, which a training applies; size, crop, resizing."""

import dataclasses
import re
from collections.abc import Mapping

from deepjax.data import Dataset
from deepjax.errors import InputError, require, unknown_name_error
from deepjax.models import model_info
from deepjax.models.weights_table import PUBLIC_WEIGHTS
from deepjax.training.config import TrainConfig
from deepjax.training.transfer.described import WeightsDescription, describe_weights

NONE = "none"  # weights_known of a file of no public weights
HALF = 127.5  # mean and std of the public weights whose row says 0.5


@dataclasses.dataclass(frozen=True)
class ExpectedImages:
    """The images of a training, as the weights expect them that it starts from."""

    dataset: Dataset
    """The data set, with their mean and std."""
    statistics: str
    """Which these are, for a line."""
    difference: str = ""
    """A warning that names other crops or resizing in evaluation; "" if there is none."""


def dataset_of(config: TrainConfig) -> Dataset:
    """The data set of a run, with the mean and std that the weights it starts from expect."""
    if not config.transfer.weights:
        return config.described
    return expected_images(config, describe_weights(config.transfer.weights)).dataset


def expected_images(config: TrainConfig, about: WeightsDescription | None) -> ExpectedImages:
    """The images that `config.transfer.weights` expect; about: their description, if they have one.

    Mean and std are those of their training where that is known, for images of the same kind; 0.5
    for public weights whose row says so (`PublicWeights.half`); else the data set's. Raises
    InputError for an unknown `weights_known`, and where it is missing for a network whose known
    weights do not all expect the data set's mean and std.
    """
    source, known = config.transfer.weights, config.transfer.weights_known
    dataset, rows = config.described, PUBLIC_WEIGHTS.get(config.model, {})
    if about is not None:
        require(not known, "weights_known", known, f"'' for {source}, which says what it expects")
        return _of_training(config, about, dataset)
    if known not in ("", NONE, *rows):
        raise unknown_name_error(f"weights_known of {config.model}", known, [*rows, NONE])
    name = known or re.sub("^hf[-_]hub:", "", source)
    row = rows.get(name)
    if row is None:
        if not known and any(each.half for each in rows.values()):
            raise InputError(
                f"weights is {source!r}, and known weights of {config.model} expect a mean and std "
                f"of 0.5; say which these are by --weights-known: {', '.join(map(repr, rows))}, or "
                f"'{NONE}' for the mean and std of {dataset.name}"
            )
        assumed = "" if known else " assumed"
        return ExpectedImages(dataset, f"mean and std of {dataset.name}{assumed}")
    sides = {model_info(config.model).input_shape[0]: row.resize}
    sides |= {288: row.resize_288} if row.resize_288 else {}
    difference = _difference(config, dataset, name, sides, row.interpolation)
    if row.half:
        half = (HALF,) * dataset.shape[2]
        dataset = dataclasses.replace(dataset, mean=half, std=half)
        return ExpectedImages(dataset, "mean and std 0.5", difference)
    return ExpectedImages(dataset, f"mean and std of {dataset.name}", difference)


def _of_training(
    config: TrainConfig, about: WeightsDescription, dataset: Dataset
) -> ExpectedImages:
    sides = {about.crop: about.shorter_side} if about.shorter_side else {}
    difference = _difference(config, dataset, config.transfer.weights, sides, about.interpolation)
    if about.encoded != dataset.encoded or len(about.mean) != dataset.shape[2]:
        return ExpectedImages(dataset, f"mean and std of {dataset.name}", difference)
    dataset = dataclasses.replace(dataset, mean=about.mean, std=about.std)
    return ExpectedImages(dataset, "mean and std of their training", difference)


def _difference(
    config: TrainConfig, dataset: Dataset, name: str, sides: Mapping[int, int], interpolation: str
) -> str:
    """What weights state of the test images and a training does otherwise; "" if there is nothing.

    sides: shorter side in pixels of a photograph, by the size of its crop; the usual size first.
    """
    if not sides or not dataset.encoded:
        return ""
    data, size = config.data, config.eval_shape[0]
    usual, side = next(iter(sides.items()))
    wanted = sides.get(size, round(side * size / usual))
    options = []
    if size not in sides and not (data.image_size or data.eval_size or data.progressive_sizes):
        options.append(f"--image-size {usual}")
    if abs(round(size / data.eval_crop) - wanted) > 1:
        options.append(f"--eval-crop {size / wanted:.3g}")
    if not options and interpolation == "bilinear":
        return ""
    advice = f"; give {' '.join(options)}" if options else ""
    if interpolation != "bilinear":
        advice += f"; `deepjax evaluate --run` takes --interpolation {interpolation}"
    return (
        f"{name} is tested on crops of {usual} pixels from a shorter side of {side}, "
        f"{interpolation}; this run tests on crops of {size} from {round(size / data.eval_crop)}, "
        f"bilinear{advice}"
    )
