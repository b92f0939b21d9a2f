"""Errors of classifiers without hidden layers, which a trained network has to beat.

`experiments/benchmarks/baselines.py` computes them and says how; docs/results/baselines.json has
its result.
"""

import dataclasses
import types
from collections.abc import Mapping

from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Fractions of errors: of a linear classifier, and of the 3 nearest neighbours."""

    train_images: int
    linear_train: float
    linear_test: float
    neighbours_test: float


# "NAME[:2000]" is trained on the first 2,000 training images.
BASELINES: Mapping[str, Baseline] = types.MappingProxyType(
    {
        "digits": Baseline(1437, 0.002088, 0.088889, 0.033333),
        "fashion_mnist_small[:2000]": Baseline(2000, 0.119, 0.19625, 0.219),
        "fashion_mnist_small[:4000]": Baseline(4000, 0.11375, 0.1875, 0.1995),
        "fashion_mnist_small[:8000]": Baseline(8000, 0.131375, 0.17475, 0.18825),
        "fashion_mnist_small": Baseline(16_000, 0.14175, 0.16875, 0.17225),
        "fashion_mnist": Baseline(60_000, 0.125283, 0.1533, 0.1459),
    }
)


def baseline(dataset: str, train_images: int | None = None) -> Baseline:
    """The baseline of a data set, or of its first training images; None: of all of them.

    Raises InputError, naming those that exist, for another.

    >>> baseline("fashion_mnist_small", 16_000) == baseline("fashion_mnist_small")
    True
    """
    whole = BASELINES.get(dataset)
    if train_images is None or (whole and whole.train_images == train_images):
        name = dataset
    else:
        name = f"{dataset}[:{train_images}]"
    if name not in BASELINES:
        raise InputError(
            f"dataset {name!r} has no baseline; there are those of {', '.join(BASELINES)} "
            "(experiments/benchmarks/baselines.py computes them)"
        )
    return BASELINES[name]
