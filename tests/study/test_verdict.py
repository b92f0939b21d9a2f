"""Intervals against enumeration and closed forms, rules against every case."""

import itertools

import numpy as np
import pytest

from deepjax.study.verdict import Interval, all_above, all_below, coverage, difference_interval, mean_interval


def test_the_interval_of_three_values_equals_full_enumeration():
    """27 equally likely resamples: their 2.5 % and 97.5 % quantiles."""
    values = [0.0, 1.0, 5.0]
    means = [np.mean(sample) for sample in itertools.product(values, repeat=3)]
    interval = mean_interval(values)
    assert interval.effect == 2.0
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975], method="inverted_cdf")))


def test_many_seeds_approach_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = mean_interval(values.tolist())
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_a_difference_has_the_sign_and_shift_of_its_groups():
    first, second = [0.75, 0.80, 0.70], [0.02, 0.03, 0.01]
    forward, backward = difference_interval(first, second), difference_interval(second, first)
    assert forward.effect == pytest.approx(0.73)
    assert forward.low > 0.6
    assert forward.effect == pytest.approx(-backward.effect)


def test_coverage_is_as_poor_with_three_seeds_as_the_report_says_and_good_with_many():
    assert 0.7 < coverage(3) < 0.92
    assert coverage(30) > 0.92


def test_one_seed_gives_no_interval():
    with pytest.raises(ValueError, match="at least two seeds"):
        mean_interval([1.0])


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
