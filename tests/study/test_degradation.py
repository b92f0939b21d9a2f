"""The study of degradation is judged by rules that can fail."""

import dataclasses

import pytest

from deepjax.errors import InputError
from deepjax.study.arm_result import ArmResult
from experiments.degradation import PRESETS, STUDY, Options, judge, log_ratio, make_arms
from tests.study.results import arm, results


def profile(ratio: float) -> dict[str, float]:
    """Gradient norms that shrink towards the input by `ratio`."""
    return {f"layer{i}": ratio if i < 3 else 1.0 for i in range(9)} | {"head": 50.0}


def arm_with_norms(train: float, test: float, ratio: float = 1.0) -> ArmResult:
    """An arm with errors around the given ones and gradients that shrink towards the input."""
    rows = [{"kind": kind, "gradient_norms": profile(ratio)} for kind in ("first", "epoch")]
    return arm(train, test, rows=rows)


BASE = {
    "plain20": arm_with_norms(0.1, 0.1),
    "plain56": arm_with_norms(0.2, 0.2),
    "resnet20": arm_with_norms(0.05, 0.05),
    "resnet56": arm_with_norms(0.04, 0.04),
}
SIGMOIDS = [{"sigmoid": profile(ratio)} for ratio in (1e-7, 2e-7, 3e-7)]


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        ({}, ["supported", "supported", "supported"]),
        # Overfits: better on training, worse on test images.
        ({"plain56": arm_with_norms(0.05, 0.2)}, ["refuted", "supported", "supported"]),
        ({"plain56": arm_with_norms(0.1, 0.1)}, ["inconclusive", "supported", "supported"]),
        # Within the margin.
        ({"resnet56": arm_with_norms(0.065, 0.06)}, ["supported", "supported", "supported"]),
        # As bad as plain.
        ({"resnet56": arm_with_norms(0.2, 0.2)}, ["supported", "refuted", "supported"]),
        # On the margin.
        ({"resnet56": arm_with_norms(0.07, 0.07)}, ["supported", "inconclusive", "supported"]),
        # Vanishing gradients.
        ({"plain56": arm_with_norms(0.2, 0.2, 1e-3)}, ["supported", "supported", "refuted"]),
    ],
)
def test_each_verdict_can_come_out_either_way(change, outcomes):
    verdicts = judge(results(STUDY, BASE | change, SIGMOIDS, Options()))
    assert [verdict.outcome for verdict in verdicts[:3]] == outcomes


def test_the_controls_flip_and_would_be_seen_if_they_did_not():
    controls = judge(results(STUDY, BASE, SIGMOIDS, Options()))[3:]
    assert [control.outcome for control in controls] == ["refuted", "refuted", "refuted"]
    assert all(control.is_as_expected for control in controls)
    swapped = {
        "plain20": BASE["resnet20"],
        "plain56": BASE["resnet56"],
        "resnet20": BASE["plain20"],
        "resnet56": BASE["plain56"],
    }
    healthy = [{"sigmoid": profile(1.0)}] * 3
    controls = judge(results(STUDY, swapped, healthy, Options()))[3:]
    assert not any(control.is_as_expected for control in controls)


def test_the_ratio_leaves_the_classifier_out():
    norms = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 10.0, "e": 20.0, "f": 40.0, "head": 1e6}
    assert log_ratio(norms) == pytest.approx(-1.301, abs=1e-3)  # median(1, 2) / median(20, 40)


@pytest.mark.parametrize("depths", [(56, 20), (20,), (20, 57)])
def test_depths_out_of_range_are_refused(depths):
    with pytest.raises(InputError, match=r"depths|cifar_plain57"):
        Options(depths=depths)


def test_presets_of_the_paper():
    """64k iterations of 128, 0.1 divided at 32k and 48k, decay 1e-4, momentum (section 4.2)."""
    config = make_arms(Options(dataset="cifar10"), PRESETS["cifar10"])["plain56"].config
    assert (
        config.total_steps,
        config.batch_size,
        config.optimization.weight_decay,
        config.optimization.momentum,
    ) == (
        64_000,
        128,
        1e-4,
        0.9,
    )
    assert (
        config.optimization.schedule,
        config.optimization.milestones,
        config.optimization.decay_norm_and_bias,
        config.optimization.nesterov,
    ) == (
        "step",
        (0.5, 0.75),
        True,
        False,
    )
    assert dataclasses.replace(config, learning_rate=0.1).optimization.warmup_epochs == 0


def test_the_arms_without_batch_norm_are_other_networks():
    arms = make_arms(Options(norm="none"), PRESETS["digits"])
    assert arms["plain56"].make is not None and arms["plain56"].make().norm == "none"
    assert (
        arms["plain56"].config.model
        != make_arms(Options(), PRESETS["digits"])["plain56"].config.model
    )
