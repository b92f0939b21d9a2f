"""The chart's numbers are the papers', and each claim can come out either way."""

import pytest

from experiments.imagenet_history import RESNET, STUDY, WINNERS, judge
from tests.study.results import arm, results

ARMS = {"vgg11_bn": arm(0.1, 0.12), "googlenet_bn": arm(0.1, 0.11), "resnet18": arm(0.1, 0.10)}


def outcomes(**arms):
    return [verdict.outcome for verdict in judge(results(STUDY, ARMS | arms))]


def test_the_chart():
    """He et al. 2015, Table 5: 6.66 rounds GoogLeNet's 6.67 (Szegedy et al. 2014); SENet 2.251."""
    assert [winner.error for winner in WINNERS] == [16.4, 11.7, 6.67, 3.57, 2.99, 2.25]
    assert [winner.layers for winner in WINNERS] == [8, 8, 22, 152, 152, 152]
    assert RESNET["one, 10 crops"] == 5.71  # Table 3


@pytest.mark.parametrize(
    ("arms", "race"),
    [
        ({}, ["supported", "supported"]),
        ({"resnet18": arm(0.1, 0.2)}, ["supported", "refuted"]),
        ({"googlenet_bn": arm(0.1, 0.12)}, ["inconclusive", "supported"]),
    ],
)
def test_history_is_arithmetic_and_the_race_is_open(arms, race):
    falls, deeper, human, *raced, backwards, itself = outcomes(**arms)
    assert (falls, deeper, human) == ("supported", "refuted", "inconclusive")
    assert raced == race
    assert (backwards, itself) == ("refuted", "inconclusive")
