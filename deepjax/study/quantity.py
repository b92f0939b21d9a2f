"""What a claim is about: errors of arms and values measured by seed, added, subtracted, scaled.

error("plain44") - error("plain20")                   # of each set that the claim names
measured("sigma", "trained") - measured("sigma", "untrained")
slope({8: error("plain8"), 20: error("plain20")})     # least squares over x
log(measured("share", "plain")) - log(measured("share", "residual"))     # a ratio
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from deepjax.study.results import StudyResults, value_at
from deepjax.study.stats.intervals import Sample

Split = Literal["train", "test"]
POINTS = " points"  # unit of errors, which are kept as fractions and reported in per cent


@dataclasses.dataclass(frozen=True)
class ErrorOf:
    """The final error of an arm on training or test images, in percentage points."""

    arm: str

    def values(self, results: StudyResults, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """By seed, and by seed and image."""
        misclassified = 100.0 * results.arms[self.arm].misclassified[split]
        return misclassified.mean(1), misclassified


@dataclasses.dataclass(frozen=True)
class ValueOf:
    """A measured value; a list is averaged, after the logarithm where that is asked for.

    A value that is not finite, or missing since a run diverged, is not a number, so that claims
    about it are inconclusive.
    """

    path: tuple[Any, ...]
    logarithm: bool = False

    def values(self, results: StudyResults, split: Split) -> tuple[np.ndarray, None]:
        """By seed; there are no images."""
        at = [None if seed is None else value_at(seed, self.path) for seed in results.measured]
        found = [np.asarray(np.nan if value is None else value, np.float64) for value in at]
        found = [np.where(np.isfinite(value), value, np.nan) for value in found]
        if self.logarithm:
            found = [np.log(np.where(value > 0, value, np.nan)) for value in found]
        return np.array([float(np.mean(value)) for value in found]), None


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A linear combination of errors and measured values."""

    terms: tuple[tuple[float, ErrorOf | ValueOf], ...]
    name: str
    unit: str = ""

    def __sub__(self, other: "Quantity") -> "Quantity":
        terms = (*self.terms, *((-factor, leaf) for factor, leaf in other.terms))
        return dataclasses.replace(self, terms=terms, name=f"{self.name} less {other.name}")

    def __add__(self, other: "Quantity") -> "Quantity":
        name = f"{self.name} plus {other.name}"
        return dataclasses.replace(self, terms=(*self.terms, *other.terms), name=name)

    def __mul__(self, factor: float) -> "Quantity":
        terms = tuple((factor * each, leaf) for each, leaf in self.terms)
        return dataclasses.replace(self, terms=terms, name=f"{factor:g} times {self.name}")

    def named(self, name: str, unit: str | None = None) -> "Quantity":
        """The same quantity under another name, and with another unit where one is given."""
        return dataclasses.replace(self, name=name, unit=self.unit if unit is None else unit)

    @functools.cached_property
    def arms(self) -> tuple[str, ...]:
        """The arms whose errors it contains."""
        return tuple(dict.fromkeys(leaf.arm for _, leaf in self.terms if isinstance(leaf, ErrorOf)))

    def sample(self, results: StudyResults, split: Split = "test") -> Sample:
        """The values by seed and image. Raises ValueError for arms with other images."""
        by_seed: Any = 0.0
        by_image: Any = 0.0 if self.arms else None
        for factor, leaf in self.terms:
            seeds, images = leaf.values(results, split)
            by_seed = by_seed + factor * seeds
            if by_image is not None and images is not None:
                by_image = by_image + factor * images
        return Sample(by_seed, by_image, self._selection(results, split))

    def _selection(self, results: StudyResults, split: Split) -> float:
        """Error from selected rates: arms are independent, an arm that occurs twice is not."""
        factors: dict[str, float] = {}
        for factor, leaf in self.terms:
            if isinstance(leaf, ErrorOf):
                pilot = results.arms[leaf.arm].pilot
                factors[pilot] = factors.get(pilot, 0.0) + factor
        errors = {arm.pilot: arm.selection[split] for arm in results.arms.values()}
        return 100.0 * math.hypot(*(factor * errors[pilot] for pilot, factor in factors.items()))


def error(arm: str) -> Quantity:
    """The final error of an arm in per cent, on the sets that the claim names."""
    return Quantity(((1.0, ErrorOf(arm)),), arm.replace("_", " "), POINTS)


def measured(*path: Any, name: str = "", unit: str = "") -> Quantity:
    """A value that `measure` returned, or the mean of a list.

    measured("signal", "no norm") is found["signal"]["no norm"].
    """
    return Quantity(((1.0, ValueOf(path)),), name or ", ".join(map(str, path)), unit)


def log(value: Quantity) -> Quantity:
    """The natural logarithm of one measured value; not positive: not a number, inconclusive."""
    factor, leaf = value.terms[0]
    if len(value.terms) > 1 or factor != 1.0 or not isinstance(leaf, ValueOf):
        raise TypeError(f"log takes one measured value, given {value.name!r}")
    term = (1.0, dataclasses.replace(leaf, logarithm=True))
    return Quantity((term,), f"log of {value.name}")


def slope(points: Mapping[float, Quantity], name: str = "", unit: str = "") -> Quantity:
    """The least-squares slope of quantities over x. Raises ValueError for fewer than two points."""
    x = np.array(list(points), np.float64)
    if len(x) < 2:
        raise ValueError(f"a slope needs two points or more, given {len(x)}")
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    terms = [
        (float(weight * factor), leaf)
        for weight, each in zip(weights, points.values(), strict=True)
        for factor, leaf in each.terms
    ]
    first = next(iter(points.values()))
    return Quantity(tuple(terms), name or f"slope of {first.name}", unit or first.unit)


def mean(*quantities: Quantity, name: str) -> Quantity:
    """The mean of several quantities."""
    total = functools.reduce(lambda one, other: one + other, quantities)
    return (total * (1 / len(quantities))).named(name)
