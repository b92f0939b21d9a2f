"""Verdicts on laws of depth: does a quantity grow or fall exponentially, or as a power, and at the rate that is claimed?"""

from collections.abc import Mapping, Sequence

import numpy as np

from deepjax.analysis.plots import Curve
from deepjax.study.stats.verdict import Interval, Outcome, Verdict, all_within, slope_interval

Points = Mapping[int, Sequence[float]]
"""By depth: a positive value for each seed."""
Bounds = tuple[float, float]


def exponential(
    claim: str,
    measure: str,
    rule: str,
    points: Points,
    bounds: Bounds,
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """Does the factor per block lie within the bounds? A line through the logarithms for each seed, Student's interval over seeds.

    The effect is the slope of the natural logarithm. A value that is not above 0 leaves it inconclusive.
    """
    slope = _slope(np.array(list(points), float), points)
    found = f"each block multiplies it by {np.exp(slope.effect):.3f} [{np.exp(slope.low):.3f}, {np.exp(slope.high):.3f}]"
    low, high = np.log(bounds)
    return _verdict(claim, measure, rule, points, slope, (float(low), float(high)), found, control)


def power(
    claim: str,
    measure: str,
    rule: str,
    points: Points,
    bounds: Bounds,
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """Does the exponent of depth lie within the bounds? A line through both logarithms, else as `exponential`."""
    slope = _slope(np.log(list(points)), points)
    found = f"it goes as depth to the power {slope.effect:.3f} [{slope.low:.3f}, {slope.high:.3f}]"
    return _verdict(claim, measure, rule, points, slope, bounds, found, control)


def curve(label: str, points: Points, color: str, line: str = "-") -> Curve:
    """The points as a line of a figure."""
    return Curve(label, list(points), list(zip(*points.values(), strict=True)), color, line)


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
    values = {
        f"{depth} blocks": [float(value) for value in column] for depth, column in points.items()
    }
    return Verdict(
        claim,
        measure,
        rule,
        all_within([slope], *bounds),
        (finding,),
        {"slope": slope},
        values,
        control,
    )
