"""From values per seed to a verdict: Student's and Welch's intervals, and rules that are fixed before the runs.

Three to five seeds are few. A percentile bootstrap over three holds the truth in 79 % of cases where 95 % are meant;
Student's t has its 95 % for normal values at any number of seeds, and the price shows in the width of the intervals.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.special

Outcome = Literal["supported", "refuted", "inconclusive"]
NOT_SUPPORTED: tuple[Outcome, ...] = ("refuted", "inconclusive")
Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Interval:
    """An effect with its two-sided 95 % interval, in the units of the values."""

    effect: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim put to the test: everything that a reader needs to check the outcome by hand."""

    claim: str
    measure: str
    rule: str
    outcome: Outcome
    findings: tuple[str, ...]
    effects: dict[str, Interval]
    values: dict[str, list[float]]
    control: tuple[Outcome, ...] = ()
    """Of a control: the outcomes that it may have, if the rule can tell; none: this is a claim."""

    @property
    def is_as_expected(self) -> bool:
        """Whether a control came out as it must; true for a claim."""
        return not self.control or self.outcome in self.control

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for result.json."""
        return dataclasses.asdict(self)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's t interval. Raises ValueError for fewer than two values."""
    sample = _sample(values)
    return _around(float(sample.mean()), _error(sample), len(sample) - 1)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of first - second, seed by seed, with Student's t interval: where a seed means the same images in the same order.

    Raises ValueError for groups of unequal length or of fewer than two values.
    """
    return mean_interval((_sample(first) - _sample(second)).tolist())


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """mean(first) - mean(second) of independent groups with Welch's t interval (Welch 1947, Satterthwaite's degrees of freedom).

    Raises ValueError for groups of fewer than two values.
    """
    a, b = _sample(first), _sample(second)
    errors = np.array([_error(a), _error(b)])
    total = float(np.hypot(*errors))
    freedom = total**4 / float(np.sum(errors**4 / [len(a) - 1, len(b) - 1])) if total else 1.0
    return _around(float(a.mean() - b.mean()), total, freedom)


def slope_interval(x: Sequence[float], y_by_seed: Sequence[Sequence[float]]) -> Interval:
    """Slope of y over x by least squares, a slope for each seed; mean over seeds with Student's t interval.

    y_by_seed: (seeds, points). Raises ValueError for fewer than two seeds or two points.
    """
    if len(x) < 2:
        raise ValueError(f"a slope needs at least two points, given {len(x)}")
    return mean_interval([float(np.polyfit(x, y, 1)[0]) for y in y_by_seed])


def coverage(seeds: int, draw: Draw | None = None, trials: int = 1000) -> float:
    """How often the 95 % interval of a difference holds the true one, simulated: for normal values, or those of `draw(rng, n)`."""
    rng = np.random.default_rng(1)
    draw = draw or (lambda rng, n: rng.normal(size=n))
    hits = 0
    for _ in range(trials):
        interval = difference_interval(draw(rng, seeds).tolist(), draw(rng, seeds).tolist())
        hits += interval.low <= 0 <= interval.high
    return hits / trials


def _sample(values: Sequence[float]) -> np.ndarray:
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two seeds, given {len(values)}")
    return np.asarray(values, np.float64)


def _error(sample: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(sample.std(ddof=1)) / math.sqrt(len(sample))


def _around(effect: float, error: float, freedom: float) -> Interval:
    half = float(scipy.special.stdtrit(freedom, 0.975)) * error if error else 0.0
    return Interval(effect, effect - half, effect + half)


def all_above(intervals: Sequence[Interval], bound: float) -> Outcome:
    """Supported when every interval lies above the bound, refuted when any lies below it, else inconclusive."""
    if all(interval.low > bound for interval in intervals):
        return "supported"
    return "refuted" if any(interval.high < bound for interval in intervals) else "inconclusive"


def all_below(intervals: Sequence[Interval], bound: float) -> Outcome:
    """Supported when every interval lies below the bound, refuted when any lies above it, else inconclusive."""
    if all(interval.high < bound for interval in intervals):
        return "supported"
    return "refuted" if any(interval.low > bound for interval in intervals) else "inconclusive"


def all_within(intervals: Sequence[Interval], low: float, high: float) -> Outcome:
    """Supported when every interval lies between the bounds, refuted when any lies outside of them, else inconclusive."""
    if all(low < interval.low and interval.high < high for interval in intervals):
        return "supported"
    return (
        "refuted"
        if any(interval.high < low or interval.low > high for interval in intervals)
        else "inconclusive"
    )


def exact(holds: bool) -> Outcome:
    """Of integers that were worked out rather than measured: supported or refuted."""
    return "supported" if holds else "refuted"
