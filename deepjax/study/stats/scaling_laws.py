"""Scaling laws: verdicts on exponentials and powers of depth, and a fit over batch sizes."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from deepjax.study.stats.intervals import Interval, slope_interval
from deepjax.study.stats.rules import all_within
from deepjax.study.stats.verdict import Outcome, Verdict

Points = Mapping[int, Sequence[float]]
"""By depth: a positive value for each seed."""
Bounds = tuple[float, float]


def exponential_law(
    claim: str,
    measure: str,
    rule: str,
    points: Points,
    bounds: Bounds,
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """Is the factor per block within the bounds? Least-squares line through the logs of each seed.

    The effect is the slope of the natural logarithm with Student's interval over seeds. A value
    that is not positive makes it inconclusive.
    """
    slope = _slope(np.array(list(points), float), points)
    factor, low, high = np.exp([slope.effect, slope.low, slope.high])
    finding = f"each block multiplies it by {factor:.3f} [{low:.3f}, {high:.3f}]"
    low, high = np.log(bounds)
    log_bounds = (float(low), float(high))
    return _verdict(claim, measure, rule, points, slope, log_bounds, finding, control)


def power_law(
    claim: str,
    measure: str,
    rule: str,
    points: Points,
    bounds: Bounds,
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """Is the exponent of depth within the bounds? As `exponential_law`, over the log of depth."""
    slope = _slope(np.log(list(points)), points)
    finding = (
        f"it goes as depth to the power {slope.effect:.3f} [{slope.low:.3f}, {slope.high:.3f}]"
    )
    return _verdict(claim, measure, rule, points, slope, bounds, finding, control)


@dataclasses.dataclass(frozen=True)
class Hyperbola:
    """(S / S_min - 1) (E / E_min - 1) = 1 for S steps on E = B S examples: S = S_min + E_min / B.

    McCandlish et al. 2018, section 2.2.
    """

    s_min: float
    """Minimum number of steps, at any batch size."""
    e_min: float
    """Minimum number of examples, at any batch size."""

    @property
    def critical(self) -> float:
        """The critical batch size E_min / S_min: twice the minimum of steps and of examples."""
        return self.e_min / self.s_min

    def steps(self, batch: float) -> float:
        """Steps at a batch size."""
        return self.s_min + self.e_min / batch


def fit_hyperbola(batches: Sequence[float], steps: Sequence[float]) -> Hyperbola:
    """Least squares of log S.

    Raises ValueError for fewer than three batch sizes, and for steps that are not finite.
    """
    import scipy.optimize  # here, since it takes half a second

    if len(batches) < 3 or not np.all(np.isfinite(steps)):
        raise ValueError(
            f"a hyperbola needs three batch sizes or more that reach the target, given {batches}: "
            f"{steps}"
        )
    b, s = np.asarray(batches, float), np.asarray(steps, float)

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.log(np.exp(logs[0]) + np.exp(logs[1]) / b) - np.log(s)

    found = scipy.optimize.least_squares(residuals, np.log([s.min(), (s * b).min()])).x
    return Hyperbola(*map(float, np.exp(found)))


def _slope(x: np.ndarray, points: Points) -> Interval:
    values = np.array(list(points.values()), float).T
    logs = np.log(np.where(values > 0, values, np.nan))
    return slope_interval(x.tolist(), logs.tolist())


def _verdict(
    claim: str,
    measure: str,
    rule: str,
    points: Points,
    slope: Interval,
    bounds: Bounds,
    finding: str,
    control: tuple[Outcome, ...],
) -> Verdict:
    values = {f"{depth} blocks": list(map(float, by_seed)) for depth, by_seed in points.items()}
    outcome, effects = all_within([slope], *bounds), {"slope": slope}
    return Verdict(claim, measure, rule, outcome, (finding,), effects, values, control)
