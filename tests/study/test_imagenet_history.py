"""The chart's numbers are those of the papers, and its claims are arithmetic on them."""

import pytest

from deepjax.study.claim import judge_exact
from experiments.imagenet_history import (
    CLAIMS,
    RESNET,
    TEN_CROPS,
    WINNERS,
    falls,
)


def test_the_numbers_are_those_of_the_papers():
    """He et al. 2015, Table 5, rounds GoogLeNet's 6.67 (Szegedy et al. 2014) to 6.66."""
    assert [winner.error for winner in WINNERS] == [16.4, 11.7, 6.67, 3.57, 2.99, 2.25]
    assert [winner.layers for winner in WINNERS] == [8, 8, 22, 152, 152, 152]
    assert list(RESNET.values()) == [3.57, 4.49, 5.71, 6.7]
    assert list(TEN_CROPS.values()) == [18.2, 9.15, 5.71]


def test_every_winner_has_a_source_and_a_number_of_networks():
    """AlexNet's 16.4 % is five networks, and one has 18.2 % (Krizhevsky et al. 2012, Table 2)."""
    assert all(winner.source and winner.networks != "1" for winner in WINNERS)
    assert WINNERS[0].networks == "5" and "18.2" in WINNERS[0].caveat


@pytest.mark.parametrize(
    ("numbers", "expected"), [([3, 2, 1], True), ([3, 3, 1], False), ([1, 2], False), ([1], True)]
)
def test_numbers_fall_only_if_each_is_below_the_one_before(numbers, expected):
    assert falls(numbers) == expected


def test_the_outcomes():
    outcomes = [judge_exact(claim).outcome for claim in CLAIMS]
    assert outcomes == ["supported", "refuted", "supported", "refuted", "supported"]
