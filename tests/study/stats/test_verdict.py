"""Intervals against closed forms and simulated studies without an effect; every case of a rule."""

import numpy as np
import pytest
import scipy.stats

from deepjax.study.stats.intervals import (
    Interval,
    difference_interval,
    mean_interval,
    paired_interval,
    slope_interval,
)
from deepjax.study.stats.rules import all_above, all_below, all_within
from deepjax.study.stats.verdict import Verdict

NULLS = 1000  # simulated studies in which nothing is to be found
# 5 % of false positives are nominal; of 1,000 studies 95 % show at most 61, 99.9 % at most 71.
MOST_FALSE = 71 / NULLS


def normal(rng, n):
    return rng.normal(size=n)


def skewed(rng, n):
    return rng.exponential(size=n)


def counted(rng, n):
    """Errors of 360 test images at a true error of 4 %."""
    return rng.binomial(360, 0.04, n) / 360


def heavy(rng, n):
    return rng.standard_t(3, size=n)


@pytest.mark.parametrize("draw", [normal, counted, heavy])
@pytest.mark.parametrize("seeds", [3, 5])
def test_studies_without_an_effect_are_called_an_effect_at_most_as_often_as_said(draw, seeds):
    rng = np.random.default_rng(7)
    false = {"difference": 0, "paired": 0}
    for _ in range(NULLS):
        a, b = draw(rng, seeds).tolist(), draw(rng, seeds).tolist()
        for name, interval in (
            ("difference", difference_interval(a, b)),
            ("paired", paired_interval(a, b)),
        ):
            false[name] += all_above([interval], 0.0) != "inconclusive"
    assert max(false.values()) / NULLS <= MOST_FALSE


def test_unequal_spread_keeps_the_level():
    rng = np.random.default_rng(8)
    false = 0
    for _ in range(NULLS):
        interval = difference_interval(
            rng.normal(size=5).tolist(), (10 * rng.normal(size=5)).tolist()
        )
        false += not interval.low <= 0 <= interval.high
    assert false / NULLS <= MOST_FALSE


def test_an_effect_of_three_deviations_is_mostly_found_with_five_seeds():
    rng = np.random.default_rng(9)
    found = sum(
        difference_interval((3 + rng.normal(size=5)).tolist(), rng.normal(size=5).tolist()).low > 0
        for _ in range(NULLS)
    )
    assert found / NULLS > 0.9


def test_two_rules_at_once_are_not_easier_to_pass_than_one():
    """Supported needs every interval: an intersection-union test, which needs no correction."""
    rng = np.random.default_rng(10)
    supported = 0
    for _ in range(NULLS):
        intervals = [
            difference_interval(rng.normal(size=3).tolist(), rng.normal(size=3).tolist())
            for _ in range(2)
        ]
        supported += all_above(intervals, 0.0) == "supported"
    assert supported / NULLS <= 0.025


def test_the_mean_has_students_interval():
    values = [2.0, 3.0, 7.0]
    low, high = scipy.stats.t.interval(0.95, 2, loc=4.0, scale=scipy.stats.sem(values))
    assert mean_interval(values) == Interval(4.0, pytest.approx(low), pytest.approx(high))


def test_a_difference_has_welchs_interval():
    first, second = [0.75, 0.80, 0.70, 0.9], [0.02, 0.03, 0.01]
    welch = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    interval = difference_interval(first, second)
    assert (interval.low, interval.high) == pytest.approx((welch.low, welch.high))
    assert interval.effect == pytest.approx(-difference_interval(second, first).effect)


def test_what_the_seeds_have_in_common_is_not_in_a_paired_difference():
    first, second = [0.10, 0.50, 0.90], [0.09, 0.49, 0.89]
    assert paired_interval(first, second).low > 0
    assert difference_interval(first, second).low < 0


def test_slopes_are_taken_by_seed():
    assert slope_interval([1, 2, 3], [[1, 2, 3], [0, 2, 4]]).effect == pytest.approx(1.5)


def test_equal_values_leave_no_doubt():
    assert difference_interval([0.5, 0.5], [0.25, 0.25]) == Interval(0.25, 0.25, 0.25)


def coverage(seeds: int, draw=normal, trials: int = 1000) -> float:
    """How often the 95 % interval of a difference covers the true one, simulated."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(trials):
        interval = difference_interval(draw(rng, seeds).tolist(), draw(rng, seeds).tolist())
        hits += interval.low <= 0 <= interval.high
    return hits / trials


def test_coverage_is_what_is_meant():
    assert 0.93 < coverage(3) < 1
    assert 0.93 < coverage(5, skewed) < 1


@pytest.mark.parametrize(
    "call", [mean_interval, lambda values: difference_interval(values, [1.0, 2.0])]
)
def test_one_seed_gives_no_interval(call):
    with pytest.raises(ValueError, match="at least two seeds"):
        call([1.0])


def test_a_control_says_whether_it_came_out_as_it_must():
    def verdict(outcome, control):
        return Verdict("c", "m", "r", outcome, (), {}, {}, control)

    assert (
        verdict("refuted", ("refuted",)).is_as_expected and verdict("supported", ()).is_as_expected
    )
    assert not verdict("supported", ("refuted", "inconclusive")).is_as_expected


ABOVE, BELOW, ACROSS = Interval(2, 1, 3), Interval(-2, -3, -1), Interval(0, -1, 1)


@pytest.mark.parametrize(
    ("intervals", "above", "below"),
    [
        ([ABOVE, ABOVE], "supported", "refuted"),
        ([ABOVE, ACROSS], "inconclusive", "refuted"),
        ([ACROSS, ACROSS], "inconclusive", "inconclusive"),
        ([ABOVE, BELOW], "refuted", "refuted"),
        ([BELOW, ACROSS], "refuted", "inconclusive"),
        ([BELOW, BELOW], "refuted", "supported"),
    ],
)
def test_rules(intervals, above, below):
    assert all_above(intervals, 0.0) == above
    assert all_below(intervals, 0.0) == below


@pytest.mark.parametrize(
    ("bounds", "outcome"),
    [((0, 4), "supported"), ((1.5, 4), "inconclusive"), ((4, 5), "refuted"), ((-1, 0), "refuted")],
)
def test_within(bounds, outcome):
    assert all_within([ABOVE], *bounds) == outcome
