"""The study of stochastic depth is judged by rules that can fail, and has the paper's protocol."""

import pytest

from deepjax.models.stochastic_depth import StochasticDepth
from deepjax.study.arm_result import ArmResult
from deepjax.study.study import Options
from experiments.stochastic_depth import ARMS, PRESETS, STUDY, judge, make_arms
from tests.study.results import arm, results


def arm_with_norms(test: float, first: float = 1.0, head: float = 1.0) -> ArmResult:
    """An arm with test errors around the given one, and gradients of the first and last layer."""
    norms = {
        "stem_conv": first,
        "stage1_block1/conv1": 9.0,
        "stage3_block5/conv2": 5.0,
        "head": head,
    }
    epoch = {"kind": "epoch", "step": 22, "seconds": 1.0, "gradient_norms": norms}
    sign = (-1) ** round(100 * test)
    return arm(test, test, [0.001 * i * sign for i in range(3)], [epoch, epoch])


FULL = {
    "full-long": arm_with_norms(0.10),
    "full-short": arm_with_norms(0.20),
    "always-short": arm_with_norms(0.20),
}
PAPER = FULL | {
    "stochastic-long": arm_with_norms(0.08, 3.0),
    "stochastic-short": arm_with_norms(0.20),
    "rarely-short": arm_with_norms(0.50),
}


def verdicts(arms: dict[str, ArmResult]):
    return judge(results(STUDY, arms))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["inconclusive", "supported", "supported", "supported", "supported"]),
        (
            {"stochastic-long": arm_with_norms(0.12, 3.0, 3.0)},
            ["inconclusive", "refuted", "refuted", "supported", "inconclusive"],
        ),
        (
            {"stochastic-short": arm_with_norms(0.30)},
            ["refuted", "supported", "supported", "supported", "supported"],
        ),
        (
            {"stochastic-long": arm_with_norms(0.08, 0.5, 0.1)},
            ["inconclusive", "supported", "supported", "refuted", "supported"],
        ),
    ],
)
def test_each_verdict_can_come_out_either_way(change, expected):
    assert [verdict.outcome for verdict in verdicts(PAPER | change)[:5]] == expected


def test_the_controls_flip_and_would_be_seen_if_they_did_not():
    controls = verdicts(PAPER)[5:]
    assert [control.outcome for control in controls] == ["refuted", "inconclusive", "inconclusive"]
    assert all(control.is_as_expected for control in controls)
    blind = PAPER | {"rarely-short": arm_with_norms(0.1), "always-short": arm_with_norms(0.1, 2.0)}
    assert not any(control.is_as_expected for control in verdicts(blind)[5:])


def test_the_arms_are_the_network_bare_and_wrapped_at_two_budgets():
    sizes = PRESETS["digits"].sizes
    for name, declared in make_arms(Options(), PRESETS["digits"]).items():
        survival, budget = ARMS[name]
        assert declared.config.epochs == sizes[budget]
        made = declared.make() if declared.make else None
        assert survival == (made.survival if isinstance(made, StochasticDepth) else None)


def test_preset_of_the_paper():
    """ResNet-110, 500 epochs of 128, 0.1 divided at half and three quarters, decay 1e-4."""
    paper = make_arms(Options(dataset="cifar10"), PRESETS["cifar10"])["stochastic-long"]
    config = paper.config
    assert (
        config.epochs,
        config.batch_size,
        config.optimization.weight_decay,
        config.optimization.momentum,
    ) == (
        500,
        128,
        1e-4,
        0.9,
    )
    assert (
        config.optimization.schedule,
        config.optimization.milestones,
        config.optimization.nesterov,
    ) == ("step", (0.5, 0.75), True)
    made = paper.make() if paper.make else None
    assert isinstance(made, StochasticDepth) and (made.survival, made.per) == (0.5, "batch")
