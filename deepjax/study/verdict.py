"""From values per seed to a verdict: bootstrap intervals, and rules that are fixed before the runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Outcome = Literal["supported", "refuted", "inconclusive"]
RESAMPLES = 20_000


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

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for result.json."""
        return dataclasses.asdict(self)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with the percentile bootstrap interval (Efron 1979). Raises ValueError for fewer than two values."""
    sample = _sample(values)
    means = _resampled_means(sample, np.random.default_rng(0))
    return _interval(float(sample.mean()), means)


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """mean(first) - mean(second) with the percentile bootstrap interval, both groups resampled independently.

    With few seeds the interval is too narrow: `coverage(n)` measures how often it holds the truth for normal values.
    Raises ValueError for groups of fewer than two values.
    """
    a, b = _sample(first), _sample(second)
    rng = np.random.default_rng(0)
    return _interval(float(a.mean() - b.mean()), _resampled_means(a, rng) - _resampled_means(b, rng))


def coverage(seeds: int, trials: int = 400) -> float:
    """How often the 95 % interval of a difference holds the true one, for normal values of equal spread: simulated."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(trials):
        interval = difference_interval(rng.normal(size=seeds).tolist(), rng.normal(size=seeds).tolist())
        hits += interval.low <= 0 <= interval.high
    return hits / trials


def _sample(values: Sequence[float]) -> np.ndarray:
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two seeds, given {len(values)}")
    return np.asarray(values, np.float64)


def _resampled_means(sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return sample[rng.integers(0, len(sample), (RESAMPLES, len(sample)))].mean(axis=1)


def _interval(effect: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(effect, float(low), float(high))


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
