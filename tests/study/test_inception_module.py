"""The slide's integers, modules with ablated and blind branches, times and memory of a step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis import count_macs, macs_by_layer
from deepjax.errors import InputError
from deepjax.study.arms.rates import SelectedRate
from deepjax.study.cost import TrainingStep, median_seconds, network_cost
from deepjax.study.preset import Preset
from deepjax.study.study import SeedContext, trained_arms
from deepjax.training.network import model_from
from experiments.inception_module import (
    SLIDE_INPUT,
    STUDY,
    InceptionNet,
    check_macs,
    check_taught,
    measure,
    slide_module,
)


def test_the_modules_take_what_can_be_worked_out_by_hand():
    """Each term is pixels x kernel x channels in x channels out."""
    pixels = 28 * 28
    naive = {"conv1x1": 256 * 128, "conv3x3": 9 * 256 * 192, "conv5x5": 25 * 256 * 96}
    reductions = dict.fromkeys(("reduce3x3", "reduce5x5", "project"), 256 * 64)
    bottleneck = reductions | {
        "conv1x1": 256 * 128,
        "conv3x3": 9 * 64 * 192,
        "conv5x5": 25 * 64 * 96,
    }
    assert macs_by_layer(slide_module(False), SLIDE_INPUT) == {
        name: pixels * terms for name, terms in naive.items()
    }
    assert macs_by_layer(slide_module(True), SLIDE_INPUT) == {
        name: pixels * terms for name, terms in bottleneck.items()
    }
    assert count_macs(slide_module(False), SLIDE_INPUT) == 854_196_224
    assert count_macs(slide_module(True), SLIDE_INPUT) == 271_351_808


def test_the_exact_claims_on_multiply_adds():
    assert check_macs()[0]
    holds, found = check_taught()
    assert not holds and "271,351,808" in found and "358,055,936" in found


@pytest.mark.parametrize(("reduce", "channels"), [(True, 480), (False, 672)])
def test_the_modules_are_as_deep_as_on_the_slide(reduce, channels):
    module = slide_module(reduce)
    out, _ = jax.eval_shape(
        module.init_with_output, jax.random.key(0), jnp.zeros((1, *SLIDE_INPUT))
    )
    assert out.shape == (1, 28, 28, channels)


@pytest.mark.parametrize(
    ("without", "absent"),
    [
        ("1x1", {"conv1x1"}),
        ("3x3", {"reduce3x3", "conv3x3"}),
        ("5x5", {"reduce5x5", "conv5x5"}),
        ("pool", {"project"}),
    ],
)
def test_an_ablated_branch_has_no_parameters(without, absent):
    def convs(model: InceptionNet) -> set[str]:
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
        return {name for name in variables["params"]["inception2"] if "norm" not in name}

    assert convs(InceptionNet()) - convs(InceptionNet(without=(without,))) == absent


@pytest.mark.parametrize("blind", [("3x3", "5x5"), ("pool",)])
def test_a_blind_branch_gets_no_gradient(blind):
    model, images = InceptionNet(blind=blind), jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = model.init(jax.random.key(1), images)

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({**variables, "params": params}, images)
        return (logits**2).mean()

    module = jax.grad(loss)(variables["params"])["inception1"]
    first = {"1x1": "conv1x1", "3x3": "reduce3x3", "5x5": "reduce5x5", "pool": "project"}
    for branch, layer in first.items():
        assert bool(np.any(module[layer]["kernel"])) == (branch not in blind)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"without": ("7x7",)}, "7x7"),
        ({"blind": ("7x7",)}, "7x7"),
        ({"without": ("3x3",), "reduce": False}, "reduce"),
        ({"blind": ("pool",), "reduce": False}, "reduce"),
    ],
)
def test_branches_that_do_not_exist_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(InceptionNet(**fields).init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))


@pytest.mark.parametrize("preset", ["quick", "small", "gpu"])
def test_naive_modules_of_half_the_width_cost_the_same(preset):
    arms = trained_arms(STUDY, STUDY.presets[preset], dict.fromkeys(STUDY.arms, SelectedRate(0.1)))
    naive, bottleneck = arms["naive"], arms["bottleneck"]
    assert abs(network_cost(naive).macs / network_cost(bottleneck).macs - 1) < 0.04
    modules = [
        sum(
            macs
            for layer, macs in macs_by_layer(
                model_from(arm.config, arm.make), arm.config.input_shape
            ).items()
            if layer.startswith("inception")
        )
        for arm in (naive, bottleneck)
    ]
    assert modules[0] == pytest.approx(modules[1], rel=0.002)


def test_the_median_is_over_rounds_without_the_first():
    calls = []
    seconds = median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


def test_the_memory_of_a_step_counts_arguments_and_results():
    """Input and parameters come in, their gradients come out; both modules have known sizes."""
    weights = {True: 3 * 256 * 64 + 256 * 128 + 9 * 64 * 192 + 25 * 64 * 96}
    weights[False] = 256 * 128 + 9 * 256 * 192 + 25 * 256 * 96
    biases = {True: 3 * 64 + 128 + 192 + 96, False: 128 + 192 + 96}
    for reduce in (True, False):
        step = TrainingStep(slide_module(reduce), (1, *SLIDE_INPUT), 0)
        floats = weights[reduce] + biases[reduce] + np.prod(SLIDE_INPUT)
        assert step.memory_bytes > 2 * 4 * floats


def test_the_naive_module_is_slower():
    preset = Preset("digits", 2, sizes={"batch": 1, "repeats": 3})
    found = measure(SeedContext("digits", preset, 0, {}, None, lambda done, total: None))
    assert found["over bottleneck"]["naive"] > 1
    assert found["over bottleneck"]["bottleneck"] == 1
    assert set(found["seconds"]) == {"naive", "bottleneck", "bottleneck again"}
