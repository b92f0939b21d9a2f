"""Stochastic depth: the networks that are compared, and the ratio of gradient norms."""

import json

import pytest

from deepjax.models.stochastic_depth import StochasticDepth
from deepjax.study.arms.arm import arm_config
from deepjax.study.study import SeedContext
from deepjax.training.metrics.metrics_log import METRICS
from deepjax.training.network import model_from
from experiments.stochastic_depth import ARMS, STUDY, first_over_head, measure


def test_the_arms_are_one_network_complete_and_with_stochastic_depth():
    found = {}
    for name, arm in ARMS.items():
        model = model_from(arm_config(arm, "fashion_mnist_small", {"width": 8}), arm.make)
        inner = model.network if isinstance(model, StochasticDepth) else model
        survival = model.survival if isinstance(model, StochasticDepth) else None
        found[name] = (inner.stages, survival)  # pyright: ignore[reportAttributeAccessIssue]
    assert found == {
        "stochastic": ((3, 3, 3), 0.5),
        "stochastic_few": ((3, 3, 3), 0.5),
        "complete": ((3, 3, 3), None),
        "complete_few": ((3, 3, 3), None),
        "resnet8": ((1, 1, 1), None),
        "resnet8_survival1": ((1, 1, 1), 1.0),
    }


def test_few_images_are_trained_for_as_many_steps_and_as_long_a_warm_up():
    training = STUDY.presets["small"].training
    few, all_images = (
        arm_config(ARMS[name], "fashion_mnist_small", training)
        for name in ("complete_few", "complete")
    )
    assert few.total_steps == all_images.total_steps == 3000
    steps = [
        config.optimization.warmup_epochs * config.steps_per_epoch for config in (few, all_images)
    ]
    assert steps == pytest.approx([250, 250])


def test_the_ratio_of_gradient_norms_is_a_geometric_mean_over_epochs(tmp_path):
    assert first_over_head({"stem_conv": 6.0, "stage1_block1/conv1": 9.0, "head": 2.0}) == 3.0
    for arm, firsts in (("stochastic", (2.0, 8.0)), ("complete", (1.0, 1.0))):
        (tmp_path / arm).mkdir()
        rows = [
            {"kind": kind, "step": i, "gradient_norms": {"stem_conv": first, "head": 1.0}}
            for i, (kind, first) in enumerate(
                [("first", 99.0), *(("epoch", each) for each in firsts)]
            )
        ]
        (tmp_path / arm / METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    runs = {arm: tmp_path / arm for arm in ("stochastic", "complete")}
    context = SeedContext("digits", STUDY.presets["quick"], 0, runs, None, lambda done, total: None)
    found = measure(context)["first over classifier"]
    assert found == pytest.approx({"stochastic": 4.0, "complete": 1.0})
