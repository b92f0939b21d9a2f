"""Depth or width: budgets that are equal where they are said to be, and rules that can fail."""

import pytest

from deepjax.study.arm_result import ArmResult
from deepjax.study.cost import network_costs
from deepjax.study.study import Options
from experiments.depth_or_width import (
    CHEAPER,
    DEEP,
    EQUAL,
    MIDDLE,
    NETS,
    PRESETS,
    SHALLOW,
    STUDY,
    THIN,
    TINY,
    judge,
    make_arms,
    name_of,
)
from tests.study.results import arm, results

NOISE = (-0.002, 0.001, 0.001)


def near(error: float) -> ArmResult:
    return arm(0.0, error, NOISE)


BASE = {
    DEEP: near(0.02),
    MIDDLE: arm(0.0, 0.02, (0.0, 0.0, 0.0)),
    SHALLOW: near(0.03),
    CHEAPER: near(0.03),
    THIN: near(0.2),
    TINY: near(0.3),
}


def outcomes(change: dict) -> list[str]:
    arms = {name_of(net): result for net, result in (BASE | change).items()}
    verdicts = judge(results(STUDY, arms))
    assert [verdict.is_as_expected for verdict in verdicts[-2:]] == [True, True]
    # The starved networks are detected.
    assert [verdict.outcome for verdict in verdicts[-2:]] == ["refuted", "refuted"]
    return [verdict.outcome for verdict in verdicts[:-2]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["supported", "inconclusive", "supported", "supported"]),
        # The margin lies within the interval.
        ({DEEP: near(0.01)}, ["supported", "supported", "supported", "inconclusive"]),
        ({DEEP: near(0.005)}, ["supported", "supported", "supported", "refuted"]),
        ({DEEP: near(0.05)}, ["refuted", "refuted", "supported", "supported"]),
        ({SHALLOW: near(0.01)}, ["supported", "inconclusive", "refuted", "supported"]),
    ],
)
def test_each_verdict_can_come_out_either_way(change, expected):
    assert outcomes(change) == expected


def test_a_control_that_does_not_flip_is_noticed():
    arms = {
        name_of(net): result for net, result in (BASE | {THIN: near(0.0), TINY: near(0.02)}).items()
    }
    assert [verdict.is_as_expected for verdict in judge(results(STUDY, arms))[-2:]] == [
        False,
        False,
    ]


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_budgets_are_equal_or_not_as_said(dataset):
    """Within 2 % in multiply-adds and 9 % in parameters; a third, a sixteenth and a fortieth."""
    costs = network_costs(make_arms(Options(dataset=dataset), PRESETS[dataset]))
    cost = {net: costs[name_of(net)] for net in NETS}
    for net in EQUAL:
        assert cost[net].macs == pytest.approx(cost[DEEP].macs, rel=0.02)
        assert cost[net].params == pytest.approx(cost[DEEP].params, rel=0.09)
    assert [
        round(cost[DEEP].macs / cost[net].macs) for net in (CHEAPER, THIN, TINY)
    ] == pytest.approx([3, 16, 40], abs=1)


def test_exact_counts():
    """The deep network at the paper's scale is ResNet-56 (0.85 M parameters, Table 6)."""
    arms = make_arms(Options(dataset="cifar10"), PRESETS["cifar10"])
    cost = network_costs({"deep": arms[name_of(DEEP)]})["deep"]
    assert (cost.params, cost.macs) == (853_018, 125_485_696)
    assert (
        arms[name_of(DEEP)].config.epochs,
        arms[name_of(DEEP)].config.optimization.weight_decay,
    ) == (
        200,
        5e-4,
    )
