"""Rules: every region, one part and several, and the p-values of their decisions."""

import math

import numpy as np
import pytest
import scipy.stats

from deepjax.study.stats.intervals import Interval, mean_interval
from deepjax.study.stats.rules import Rule, above, below, within

# 95 % intervals: (1, 3), (-3, -1), (-1, 1) and (0.1, 2.1).
HALF = 1 / scipy.stats.t.ppf(0.975, 9)
ABOVE, BELOW, ACROSS, NEAR = (Interval(effect, HALF, 9) for effect in (2.0, -2.0, 0.0, 1.1))


def test_the_intervals_have_those_ends():
    assert ABOVE.bounds() == pytest.approx((1, 3)) and NEAR.bounds() == pytest.approx((0.1, 2.1))


@pytest.mark.parametrize(
    ("intervals", "is_above", "is_below"),
    [
        ([ABOVE], "supported", "refuted"),
        ([BELOW], "refuted", "supported"),
        ([ACROSS], "inconclusive", "inconclusive"),
        ([NEAR], "supported", "refuted"),
        ([ABOVE, ABOVE], "supported", "refuted"),
        ([ABOVE, ACROSS], "inconclusive", "refuted"),
        ([ABOVE, BELOW], "refuted", "refuted"),
        ([BELOW, ACROSS], "refuted", "inconclusive"),
        ([BELOW, BELOW], "refuted", "supported"),
        # p = 0.035, which refutes alone, but not as the better one of two.
        ([NEAR, NEAR], "supported", "inconclusive"),
    ],
)
def test_above_and_below(intervals, is_above, is_below):
    assert above(0).decide(intervals).outcome == is_above
    assert below(0).decide(intervals).outcome == is_below


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0, 4, "supported"),
        (1.5, 4, "inconclusive"),
        (0, 2.5, "inconclusive"),
        (4, 5, "refuted"),
        (-1, 0, "refuted"),
        (1.9, 2.1, "inconclusive"),
    ],
)
def test_within(low, high, outcome):
    assert within(low, high).decide([ABOVE]).outcome == outcome


def test_a_smaller_level_asks_for_more():
    assert above(0.9).decide([ABOVE]).outcome == "supported"
    assert above(0.9).decide([ABOVE], level=0.005).outcome == "inconclusive"


def test_the_p_value_of_one_interval_is_that_of_the_t_test_on_either_side():
    values = np.array([2.0, 3.0, 7.0, -1.0])
    p = scipy.stats.ttest_1samp(values, 0).pvalue
    for rule in (above(0), below(0)):
        assert rule.decide([mean_interval(values)]).p == pytest.approx(p)
        assert rule.decide([mean_interval(-values)]).p == pytest.approx(p)


def test_support_has_the_greatest_p_value_of_its_parts_refutation_the_least_times_their_number():
    first, second = Interval(2.0, HALF, 9), Interval(4.0, HALF, 9)
    assert above(0).decide([first, second]).p == first.p_above(0)
    assert below(0).decide([first, second]).p == 2 * second.p_above(0)


def test_within_has_the_greater_p_value_of_both_bounds():
    assert within(0, 5).decide([ABOVE]).p == max(ABOVE.p_above(0), ABOVE.p_below(5))


@pytest.mark.parametrize("parts", [1, 2])
def test_false_positives_of_two_parts_at_once_are_not_more_than_of_one(parts):
    """Both parts at the bound, independent and of normal noise: 5 %, within chance."""
    random = np.random.default_rng(parts)
    trials = 2000
    decided = sum(
        above(0).decide([mean_interval(random.normal(size=6)) for _ in range(parts)]).outcome
        != "inconclusive"
        for _ in range(trials)
    )
    assert decided / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_rules_say_what_they_mean():
    assert above(0).words(" points") == (
        "Supported if the 95 % interval lies above 0 points; refuted if it lies all outside of "
        "that; else inconclusive."
    )
    assert within(-0.1, 0.1).words(level=0.005, parts=2) == (
        "Supported if every one of 2 intervals lies between -0.1 and 0.1; refuted if one lies all "
        "outside of that; else inconclusive."
    )
    assert "below 2 points" in below(2).words(" points")
    assert Rule(0, 1) == within(0, 1)
