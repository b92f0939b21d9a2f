"""The data sets that deepjax knows by name: shapes, classes, statistics, and which augmentations keep the class."""

import dataclasses
from pathlib import Path

from deepjax.errors import unknown

DIGITS_DIR = Path(__file__).parent / "digits"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set. Mean and deviation are per channel, in units of the stored uint8 pixels.

    `flip` is false where a mirrored image is another class or none (digits, house numbers); `crop` is the padding in pixels
    from which a random crop is taken (He et al. 2015, section 4.2: 4 at 32 pixels).
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop: int
    source: str


def _unit(*values: float) -> tuple[float, ...]:
    return tuple(255 * value for value in values)


_CATALOG = {
    dataset.name: dataset
    for dataset in (
        Dataset("digits", (8, 8, 1), 10, 1437, 360, (4.8812,), (6.0108,), False, 1, "UCI optical digits, scikit-learn's copy"),
        Dataset("fashion_mnist", (28, 28, 1), 10, 60_000, 10_000, _unit(0.2860), _unit(0.3530), True, 2, "arXiv:1708.07747"),
        Dataset(
            "cifar10", (32, 32, 3), 10, 50_000, 10_000,
            _unit(0.4914, 0.4822, 0.4465), _unit(0.2470, 0.2435, 0.2616), True, 4, "Krizhevsky 2009",
        ),
        Dataset(
            "cifar100", (32, 32, 3), 100, 50_000, 10_000,
            _unit(0.5071, 0.4865, 0.4409), _unit(0.2673, 0.2564, 0.2762), True, 4, "Krizhevsky 2009",
        ),
        Dataset(
            "svhn_cropped", (32, 32, 3), 10, 73_257, 26_032,
            _unit(0.4377, 0.4438, 0.4728), _unit(0.1980, 0.2010, 0.1970), False, 4, "Netzer et al. 2011",
        ),
    )
}  # fmt: skip


def list_datasets() -> list[str]:
    """The names of the data sets."""
    return list(_CATALOG)


def dataset_info(name: str) -> Dataset:
    """The data set of that name; raises InputError with the nearest name for any other.

    >>> dataset_info("digits").shape
    (8, 8, 1)
    """
    if name not in _CATALOG:
        raise unknown("dataset", name, _CATALOG)
    return _CATALOG[name]
