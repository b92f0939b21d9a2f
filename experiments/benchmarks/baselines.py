"""Errors of a linear classifier and of nearest neighbours: what a trained network has to beat.

python experiments/benchmarks/baselines.py --archives .data/fashion-mnist \
    --out docs/results/baselines.json

Linear: multinomial logistic regression on pixels, standardised by the data set's mean and std,
without augmentation. It minimises mean cross-entropy + penalty / 2 * |W|^2 (scikit-learn's
LogisticRegression, lbfgs, float64, which starts at zero: nothing is random) until no entry of the
gradient exceeds 1e-5. The penalty is that of the lowest error on the last 20 % of the training
images, trained on the rest until no entry of the gradient exceeds 1e-4; of equal ones the largest.
Its grid, in factors of 10, is extended until the best is inside. The classifier is then trained on
all training images.

Neighbours: the class of most of the 3 nearest training images, by the Euclidean distance of
pixels; of three classes the smallest label (scikit-learn's KNeighborsClassifier).
"""

import dataclasses
import importlib.metadata
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import format_command, write_result
from threadpoolctl import threadpool_limits

from deepjax import command_line
from deepjax.data import Split, dataset_info, load_split
from deepjax.data.idx import read_idx_split
from deepjax.errors import InputError, require
from deepjax.study.baselines import BASELINES, Baseline

PENALTIES = (1e-4, 1e-3, 1e-2)  # where the search begins
SEARCH_TOLERANCE, TOLERANCE, MAX_STEPS = 1e-4, 1e-5, 100_000
HELD_OUT = 5  # one image of so many
PACKAGES = ("scikit-learn", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class Options:
    """Which baselines are computed."""

    datasets: tuple[str, ...] = tuple(BASELINES)
    """Data sets; "NAME[:2000]" has the first 2,000 training images."""
    archives: Path | None = None
    """Folder of the four archives of Fashion-MNIST; only fashion_mnist needs it."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Pixels (count, height * width * channels) as they are stored, and labels."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def main() -> None:
    """Print a table of errors."""
    options = command_line.parse(Options)
    for name in options.datasets:
        require(name in BASELINES, "datasets", name, f"any of {', '.join(BASELINES)}")
        if name == "fashion_mnist":
            require(options.archives is not None, "archives", None, "a folder, for fashion_mnist")
    result = compute(options)
    print(table(result))
    write_result(result, options.out)


def compute(options: Options) -> dict[str, Any]:
    """The baselines by name, how each penalty was chosen, the command and the versions."""
    found = {}
    for name in options.datasets:
        pixels = load(name, options.archives)
        dataset = dataset_info(name)
        train, test = (
            (each - dataset.mean[0]) / dataset.std[0] for each in (pixels.train, pixels.test)
        )
        with threadpool_limits(1):  # so that results do not depend on the number of cores
            penalty, held_out = choose_penalty(train, pixels.train_labels)
            linear = fit(train, pixels.train_labels, penalty, TOLERANCE)
            values = Baseline(
                train_images=len(train),
                linear_train=error(linear(train), pixels.train_labels),
                linear_test=error(linear(test), pixels.test_labels),
                neighbours_test=neighbours_error(pixels),
            )
        found[name] = dataclasses.asdict(values) | {"penalty": penalty, "held_out": held_out}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    given = {
        field: list(value) if isinstance(value, tuple) else value and str(value)
        for field, value in vars(options).items()
    }
    return {
        "command": format_command("baselines.py", given, Options()).strip("`"),
        "versions": {"python": platform.python_version()} | versions,
        "baselines": found,
    }


def load(name: str, archives: Path | None) -> Pixels:
    """The images of a data set; those of fashion_mnist from its archives."""
    splits = []
    for split in ("train", "test"):
        if name == "fashion_mnist" and archives is not None:
            images, labels = read_idx_split(archives, split)
        else:
            data = load_split(dataset_info(name), split)
            if not isinstance(data, Split):
                raise InputError(f"{name} holds photographs of several sizes")
            images, labels = data.images, data.labels
        splits.append((images.reshape(len(images), -1).astype(np.float64), labels))
    (train, train_labels), (test, test_labels) = splits
    return Pixels(train, train_labels, test, test_labels)


def choose_penalty(pixels: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, float]]:
    """The penalty of the lowest held-out error, inside its grid; all held-out errors."""
    kept = len(pixels) - len(pixels) // HELD_OUT
    errors: dict[float, float] = {}
    grid = list(PENALTIES)
    while True:
        for penalty in grid:
            if penalty not in errors:
                linear = fit(pixels[:kept], labels[:kept], penalty, SEARCH_TOLERANCE)
                errors[penalty] = error(linear(pixels[kept:]), labels[kept:])
        best = min(grid, key=lambda penalty: (errors[penalty], -penalty))
        if best not in (grid[0], grid[-1]):
            return best, {f"{penalty:g}": errors[penalty] for penalty in grid}
        exponent = round(np.log10(best))
        at_start = best == grid[0]
        outside = float(f"1e{exponent - 1 if at_start else exponent + 1}")
        grid = [outside, *grid] if at_start else [*grid, outside]


def fit(
    pixels: np.ndarray, labels: np.ndarray, penalty: float, tolerance: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression, trained to its minimum: a function from pixels to classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1 / (penalty * len(pixels)), solver="lbfgs", tol=tolerance, max_iter=MAX_STEPS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        return model.fit(pixels, labels).predict


def neighbours_error(pixels: Pixels) -> float:
    """The test error of the 3 nearest training images."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(3, algorithm="brute").fit(pixels.train, pixels.train_labels)
    return error(model.predict(pixels.test), pixels.test_labels)


def error(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of wrong classes, to six decimals."""
    return round(float(np.mean(predicted != labels)), 6)


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        f"`{result['command']}`",
        "",
        "| data set | linear, training error | linear, test error | 3 neighbours, test error |",
        "|---|---:|---:|---:|",
    ]
    for name, row in result["baselines"].items():
        errors = (row[each] for each in ("linear_train", "linear_test", "neighbours_test"))
        lines.append(f"| `{name}` | " + " | ".join(f"{100 * each:.2f} %" for each in errors) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run_command(main)
