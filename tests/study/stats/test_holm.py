"""Holm's correction against an example by hand, and against simulated families."""

import numpy as np
import pytest

from deepjax.study.stats.holm import first_level, holm_adjusted


def test_an_example_by_hand():
    """Times 4, 3, 2 and 1 in the order of size, none below the one before."""
    adjusted = holm_adjusted({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    expected = {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    assert adjusted == pytest.approx(expected)


def test_claims_that_are_missing_count():
    assert holm_adjusted({"a": 0.01, "b": 0.02}, family=20) == pytest.approx({"a": 0.2, "b": 0.38})
    assert holm_adjusted({"a": 0.5}, family=20) == {"a": 1.0}


def test_of_families_without_an_effect_one_in_twenty_has_a_claim_that_stands():
    random = np.random.default_rng(0)
    families = random.random((2000, 20)).tolist()
    standing = [min(holm_adjusted(dict(enumerate(each))).values()) <= 0.05 for each in families]
    assert np.mean(standing) == pytest.approx(0.05, abs=0.015)


def test_the_first_level_is_what_the_smallest_p_value_has_to_reach():
    level = first_level(20)
    assert level == 0.0025
    assert holm_adjusted({"a": level}, family=20)["a"] == pytest.approx(0.05)
