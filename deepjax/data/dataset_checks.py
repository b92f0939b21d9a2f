"""Validation of a data set's description, alone and against the prepared data."""

import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deepjax.data.image.decode import MAX_PIXELS
from deepjax.data.split_spec import ALLOWED_SPLITS, parse_split
from deepjax.errors import InputError

INT32_MAX = 2**31 - 1  # labels and ids are int32
MAX_MEASURED_IMAGES = 1000  # images whose mean and std are compared with the declared ones
# Stds between measured and declared mean, or ratio of the two stds, beyond which only other units
# are an explanation.
MAX_STDS_APART = 20.0
IDENTITY = (0.0, 1.0)  # mean and std that leave pixels unchanged


def validate_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Dataset`, converted, with one mean and one std per channel.

    Raises InputError for the first invalid one.
    """
    name = fields["name"]
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise InputError(f"name of a data set is {name!r}; allowed: text of one line")
    where = f"dataset {name!r}: "

    def take(field: str, convert: Callable[[Any], Any], allowed: str) -> Any:
        try:
            return convert(fields[field])
        except (ValueError, TypeError, OverflowError):
            raise InputError(f"{where}{field} is {fields[field]!r}; allowed: {allowed}") from None

    encoded = take("encoded", _boolean, "True or False")
    shape = take("shape", _shape(encoded), _allowed_shape(encoded))
    height, width, channels = shape
    each = (
        "one number"
        if channels == 1
        else f"{channels} numbers, one a channel, or one number for all"
    )
    checked = {
        "name": name,
        "encoded": encoded,
        "shape": shape,
        "num_classes": take("num_classes", _integer(2, INT32_MAX), "2 or more"),
        "train_size": take("train_size", _integer(0, INT32_MAX), f"0 (none) to {INT32_MAX}"),
        "test_size": take("test_size", _integer(0, INT32_MAX), f"0 (none) to {INT32_MAX}"),
        "mean": take(
            "mean", _numbers(channels, least=0), f"{each}, 0 to 255 as the pixels are stored"
        ),
        "std": take(
            "std",
            _numbers(channels, least=1e-6),
            f"{each}, above 0 to 255 as the pixels are stored",
        ),
        "flip": take("flip", _boolean, "True or False"),
        "crop": take(
            "crop", _integer(0, min(height, width)), f"0 (none) to {min(height, width)} pixels"
        ),
        "source": take("source", _text, "text"),
        "builder": take("builder", _text, "text: a name of tfds, '' for the data set's own"),
        "train_split": take("train_split", _split, ALLOWED_SPLITS),
        "test_split": take("test_split", _split, ALLOWED_SPLITS),
        "path": take("path", _text, "text: a path to own data, '' for a builder of tfds"),
        "label": take("label", _text, "text: the entry of a record that holds the class"),
        "test_fraction": take("test_fraction", _fraction, "0 to 1"),
        "split_seed": take("split_seed", _integer(0, INT32_MAX), f"0 to {INT32_MAX}"),
    }
    names = f"() or {checked['num_classes']} texts of one line, one for each class"
    checked["label_names"] = take("label_names", _names(checked["num_classes"]), names)
    _check_splits(where, checked)
    if encoded and max(checked["std"]) < 1:  # no photographs have that; torchvision's numbers do
        raise InputError(f"{where}std is {checked['std']}; {_UNITS}")
    return checked


_UNITS = (
    "mean and std are in units of stored pixels, 0 to 255 (those of images in 0 to 1 times 255)"
)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or (value and not value.isprintable()):
        raise TypeError
    return value


def _fraction(value: Any) -> float:
    if isinstance(value, bool | str) or not 0 <= float(value) <= 1:
        raise ValueError
    return float(value)


def _names(count: int) -> Callable[[Any], tuple[str, ...]]:
    def convert(value: Any) -> tuple[str, ...]:
        names = tuple(value)
        valid = not isinstance(value, str) and len(names) in (0, count) and all(map(_text, names))
        if not valid:
            raise ValueError
        return names

    return convert


def _split(value: Any) -> str:
    parse_split(_text(value))
    return value


def _integer(least: int, greatest: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool | np.bool_) or not least <= operator.index(value) <= greatest:
            raise ValueError
        return operator.index(value)

    return convert


def _numbers(channels: int, least: float) -> Callable[[Any], tuple[float, ...]]:
    def convert(value: Any) -> tuple[float, ...]:
        several: list[Any] = [value] if isinstance(value, numbers.Real) else list(value)
        if len(several) not in (1, channels) or any(
            isinstance(v, bool) or not isinstance(v, numbers.Real) for v in several
        ):
            raise TypeError
        if not all(least <= number <= 255 for number in several):  # NaN is not
            raise ValueError
        return tuple(float(number) for number in several) * (channels // len(several))

    return convert


def _shape(encoded: bool) -> Callable[[Any], tuple[int, int, int]]:
    def convert(value: Any) -> tuple[int, int, int]:
        height, width, channels = (_integer(1, INT32_MAX)(side) for side in value)
        fits = height == width and channels == 3 if encoded else channels in (1, 3, 4)
        if not fits or height * width > MAX_PIXELS:
            raise ValueError
        return height, width, channels

    return convert


def _allowed_shape(encoded: bool) -> str:
    if encoded:
        return (
            "(side, side, 3) for photographs (encoded=True), which are cropped to a square; grey "
            "ones are read as RGB"
        )
    return "(height, width, channels) of the stored images, with 1, 3 or 4 channels"


def _check_splits(where: str, fields: Mapping[str, Any]) -> None:
    """Overlaps that are visible without the data; `check_disjoint` finds the others."""
    if not fields["train_size"] and not fields["test_size"]:
        raise InputError(
            f"{where}train_size and test_size are both 0; allowed: one of them at least is above 0"
        )
    if fields["train_size"] and fields["test_size"]:
        train, test = (dict(parse_split(fields[field])) for field in ("train_split", "test_split"))
        if common := [name for name in train if name in test and (train[name] or test[name])]:
            raise InputError(
                f"{where}train_split is {fields['train_split']!r} and test_split "
                f"{fields['test_split']!r}, which both hold records of {common[0]!r}; give parts "
                f"that do not overlap, such as '{common[0]}[:80%]' and '{common[0]}[80%:]'"
            )


def check_features(fields: Any, given: Any) -> None:
    """Raise InputError unless a builder's features match a `Dataset`.

    Compared are image, shape, type, label and classes. given: `builder.info.features` of tfds.
    Several labels per image are allowed for photographs that are for tests alone.
    """
    import tensorflow_datasets as tfds

    features: dict[str, Any] = (
        dict(given.items()) if isinstance(given, tfds.features.FeaturesDict) else {}
    )
    where, entries = f"dataset {fields.name!r}: ", ", ".join(map(repr, sorted(features))) or "none"
    image, label = features.get("image"), features.get(fields.label)
    if not isinstance(image, tfds.features.Image):
        raise InputError(
            f"{where}records need an entry 'image' that is an Image of tfds; their entries are "
            f"{entries}"
        )
    dtype, shape = _tensor(image)
    if dtype != np.uint8:
        raise InputError(
            f"{where}images are stored as {dtype}; allowed: uint8; prepare them with 8 bits a "
            "channel"
        )
    if not fields.encoded and any(
        have not in (None, want) for have, want in zip(shape, fields.shape, strict=True)
    ):
        raise InputError(
            f"{where}shape is {fields.shape}; its images are stored with shape {shape}"
        )
    several = fields.encoded and not fields.train_size
    kinds = "one class or a sequence of classes" if several else "one class"
    allowed = f"an entry with {kinds} (ClassLabel or integer) of: {entries}"
    if label is not None and several and isinstance(label, tfds.features.Sequence):
        label = label.feature
    if not isinstance(label, tfds.features.ClassLabel) and not _is_integer(label):
        raise InputError(f"{where}label is {fields.label!r}; allowed: {allowed}")
    classes = getattr(label, "num_classes", None)
    if classes not in (None, fields.num_classes):
        raise InputError(
            f"{where}num_classes is {fields.num_classes}; the entry {fields.label!r} of its "
            f"records has {classes}"
        )


def _is_integer(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.Tensor):
        return False
    dtype, shape = _tensor(feature)
    return shape == () and np.issubdtype(dtype, np.integer) and np.can_cast(dtype, np.int64)


def _tensor(feature: Any) -> tuple[np.dtype, tuple[int | None, ...]]:
    return np.dtype(feature.np_dtype), feature.shape


def check_statistics(fields: Any, images: np.ndarray) -> None:
    """Raise InputError where mean and std are implausible: other units or other images.

    images: (images, height, width, channels) uint8, of which at most a thousand are measured.
    Statistics of another data set pass, as those of ImageNet do for most; so do mean 0 and std 1,
    which leave the pixels unchanged.
    """
    some = images[:: max(1, -(-len(images) // MAX_MEASURED_IMAGES))]
    mean, std = (
        np.asarray(measure(some, axis=(0, 1, 2), dtype=np.float64)) for measure in (np.mean, np.std)
    )
    declared = list(zip(fields.mean, fields.std, strict=True))
    far = np.maximum(np.abs(mean - fields.mean), std) > MAX_STDS_APART * np.asarray(fields.std)
    if far.any() and declared != [IDENTITY] * len(declared):
        found = f"mean {np.round(mean, 2).tolist()} and std {np.round(std, 2).tolist()}"
        given = f"mean {list(fields.mean)} and std {list(fields.std)}"
        raise InputError(f"dataset {fields.name!r} has {given}; its images have {found}; {_UNITS}")
