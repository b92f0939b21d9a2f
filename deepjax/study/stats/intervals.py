"""Intervals over seeds, over seeds and images, and over the selection of learning rates.

A quantity is a mean over seeds. Where it is an error it is a mean over images too, and the learning
rates behind it were selected on a few pilot seeds: three sources of chance, each with its error.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.special

LEVEL = 0.05  # nominal rate of false positives of one two-sided test
PILOT_SEEDS = 6  # on which the learning rates are selected; with 3, headline claims had no power
SELECTION_FREEDOM = PILOT_SEEDS - 1
"""Of the error of the selection. The noise of pilots at three rates has twice as many degrees of
freedom, but with those 7 % of the simulated families had a false finding where noise is large."""
BOUND = 0.9  # one-sided confidence of the bounds of variances that give the degrees of freedom


@dataclasses.dataclass(frozen=True)
class Sample:
    """The values of one quantity, from which its intervals are computed."""

    by_seed: np.ndarray
    """(seeds,)."""
    by_image: np.ndarray | None = None
    """(seeds, images), where each value is a mean over the same images; else None."""
    selection: float = 0.0
    """Standard deviation of the value that comes from selecting learning rates on pilots."""

    def __post_init__(self) -> None:
        if len(self.by_seed) < 2:
            raise ValueError(f"an interval needs at least two seeds, given {len(self.by_seed)}")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean, its standard error, and the degrees of freedom of the error."""

    effect: float
    error: float
    freedom: float

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """Lower and upper end of Student's interval that covers the mean with 1 - level."""
        if not self.error:
            return self.effect, self.effect
        half = float(scipy.special.stdtrit(self.freedom, 1 - level / 2)) * self.error
        return self.effect - half, self.effect + half

    def p_above(self, bound: float) -> float:
        """Two-sided p-value of the mean being the bound, where it is above it; else 1."""
        if self.effect <= bound:
            return 1.0
        if not self.error:
            return 0.0
        t = (self.effect - bound) / self.error
        return float(min(1.0, 2 * scipy.special.stdtr(self.freedom, -t)))

    def p_below(self, bound: float) -> float:
        """Two-sided p-value of the mean being the bound, where it is below it; else 1."""
        return Interval(-self.effect, self.error, self.freedom).p_above(-bound)


@dataclasses.dataclass(frozen=True)
class Components:
    """The standard errors of a mean by their source."""

    seeds: float
    """Of the mean over seeds, with these images."""
    images: float
    """Added by another sample of images."""
    selection: float
    """Added by the selection of learning rates."""


def components(sample: Sample) -> Components:
    """The standard errors of a quantity by source.

    Seeds and images are crossed: the value of seed s at image i has a part of s, a part of i and a
    rest. The error of the mean over seeds contains the rest already; what images add is the
    variance of their means less the rest (Searle, Casella and McCulloch 1992, section 5.3).
    """
    seeds = len(sample.by_seed)
    by_seed = float(sample.by_seed.std(ddof=1)) / math.sqrt(seeds)
    if sample.by_image is None:
        return Components(by_seed, 0.0, sample.selection)
    values = np.asarray(sample.by_image, np.float64)
    images = values.shape[1]
    rows, columns = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - rows - columns + values.mean()
    residual = float((rest**2).sum()) / ((seeds - 1) * (images - 1))
    added = max(0.0, float(columns.var(ddof=1)) - residual / seeds) / images
    return Components(by_seed, math.sqrt(added), sample.selection)


def seeds_interval(sample: Sample) -> Interval:
    """Student's interval over seeds alone: these images and these rates."""
    return Interval(float(sample.by_seed.mean()), components(sample).seeds, len(sample.by_seed) - 1)


def complete_interval(sample: Sample) -> Interval:
    """Over seeds, images and selected rates: Student's interval with the freedom of `combined`."""
    found = components(sample)
    error, freedom = combined(found, len(sample.by_seed), _images(sample))
    return Interval(float(sample.by_seed.mean()), error, freedom)


def combined(found: Components, seeds: int, images: int) -> tuple[float, float]:
    """The standard error of all sources and its degrees of freedom.

    Satterthwaite (1946): (sum of variances)^2 / sum of (variance^2 / freedom). That takes estimated
    variances for true ones. Where seeds are underestimated by chance, the error is too small and
    the freedom too great at once, and at the level of Holm's correction twice as many false
    positives are found as allowed. So the freedom is that of upper confidence bounds of the
    variances (`BOUND`): `experiments/benchmarks/procedure.py` shows that it suffices.
    """
    parts = np.array([found.seeds, found.images, found.selection]) ** 2
    freedoms = np.array([seeds - 1, max(1, images - 1), SELECTION_FREEDOM])
    total = float(parts.sum())
    if not total:
        return 0.0, float(seeds - 1)
    bounds = parts * freedoms / scipy.special.chdtri(freedoms, BOUND)
    freedom = float(bounds.sum() ** 2 / (bounds**2 / freedoms).sum())
    return math.sqrt(total), freedom


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of values by seed."""
    return seeds_interval(Sample(np.asarray(values, np.float64)))


def _images(sample: Sample) -> int:
    return 1 if sample.by_image is None else sample.by_image.shape[1]
