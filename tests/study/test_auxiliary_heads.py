"""Auxiliary heads: what is read off gradients and rows, and rules that can fail."""

import math
from typing import Any

import pytest

from deepjax.analysis import TRAIN
from deepjax.analysis.gradients.auxiliary_losses import LossContribution, LossContributions
from deepjax.study.arm_result import ArmResult
from deepjax.study.report.metrics import epochs_to
from deepjax.study.study import Options
from experiments.auxiliary_heads import ARMS, PARTS, PRESETS, STUDY, by_part, judge, make_arms
from tests.study.results import results


def arm_by_epoch(*seeds: list[float]) -> ArmResult:
    """An arm with these test errors by epoch, seed by seed; the last is the final one."""
    rows = []
    for errors in seeds:
        epochs = [
            {"kind": "epoch", "epoch": epoch, "test_error": error}
            for epoch, error in enumerate(errors, 1)
        ]
        rows.append([*epochs, {"kind": "final", "train_error": 0.0, "test_error": errors[-1]}])
    return ArmResult({0.1: 0.0}, 0.1, rows)


FAST = arm_by_epoch(*([0.7, 0.2, 0.03, last] for last in (0.011, 0.012, 0.013)))
SLOW = arm_by_epoch(*([0.7, 0.6, 0.2, last] for last in (0.05, 0.055, 0.06)))
TRAINED = {name: SLOW if name.startswith("none") else FAST for name in ARMS}


def looks(share: float = 0.4, cosine: float = 0.3) -> list[dict[str, Any]]:
    """What was measured, by three seeds."""
    seeds = []
    for noise in (-0.01, 0.0, 0.01):
        parts = {part: {"share": share + noise, "cosine": cosine + noise} for part in PARTS}
        parts["high"] = {"share": 0.0, "cosine": None}
        seeds.append(
            {f"{norm}_{moment}": parts for norm in ("none", "batch") for moment in ("start", "end")}
        )
    return seeds


@pytest.mark.parametrize(
    ("change", "measured", "expected"),
    [
        ({}, looks(), ["supported", "supported", *["inconclusive"] * 4]),
        (
            {"none_0.3": FAST},
            looks(),
            ["supported", "supported", "supported", "inconclusive", "supported", "inconclusive"],
        ),
        (
            {"batch_0.3": SLOW},
            looks(),
            ["supported", "supported", "inconclusive", "refuted", "inconclusive", "refuted"],
        ),
        ({}, looks(share=0.02, cosine=-0.2), ["refuted", "refuted", *["inconclusive"] * 4]),
        ({}, looks(share=0.1, cosine=0.0), ["inconclusive", "inconclusive", *["inconclusive"] * 4]),
    ],
)
def test_each_verdict_can_come_out_either_way(change, measured, expected):
    verdicts = judge(results(STUDY, TRAINED | change, measured))
    assert [verdict.outcome for verdict in verdicts[:-2]] == expected
    assert [(verdict.outcome, verdict.is_as_expected) for verdict in verdicts[-2:]] == [
        ("refuted", True)
    ] * 2


def test_epochs_to_a_target():
    """The first epoch below it; one more than there are where none is."""
    assert epochs_to(arm_by_epoch([0.5, 0.05, 0.2], [0.5, 0.2, 0.1], [0.01, 0.5, 0.5]), 0.1) == [
        2.0,
        4.0,
        1.0,
    ]


def test_shares_are_gathered_by_part():
    """Heads are summed, layers averaged; heads' own layers belong to no part; no gradient: None."""
    rows = []
    for layer, share in (
        ("stem_conv1", 0.2),
        ("inception3a/conv1x1", 0.1),
        ("head", 0.0),
        ("auxiliary4a/logits", 1.0),
    ):
        rows.append(LossContribution(layer, "main", 1.0, 1 - 2 * share, 1.0))
        rows += [
            LossContribution(layer, head, 1.0, share, 0.5 if share else math.nan)
            for head in ("4a", "4d")
        ]
    parts = by_part(
        LossContributions(TRAIN, "", "", {}, {}, tuple(rows)),
        {"low": ("stem", "inception3"), "high": ("head",)},
    )
    assert parts == {
        "low": {"share": pytest.approx(0.3), "cosine": 0.5},
        "high": {"share": 0.0, "cosine": None},
    }


def test_arms_and_preset_of_the_papers():
    """Weight 0.3 is GoogLeNet's (section 5); published baselines of CIFAR-100 take 200 epochs."""
    arms = make_arms(Options(dataset="cifar100"), PRESETS["cifar100"])
    assert sorted(arms) == sorted(ARMS)
    paper = arms["none_0.3"].config
    assert set(make_arms(Options(), PRESETS["digits"])) == {
        "none_0",
        "none_0.3",
        "batch_0",
        "batch_0.3",
    }
    assert (paper.model, paper.objective.auxiliary_weight, paper.data.image_size, paper.epochs) == (
        "googlenet",
        0.3,
        224,
        200,
    )
