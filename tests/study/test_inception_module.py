"""The slide's integers, modules without a branch, and the verdicts on made-up results."""

import jax
import jax.numpy as jnp
import pytest

from deepjax.analysis import count_macs, macs_by_layer
from deepjax.errors import InputError
from deepjax.study.arm_result import ArmResult
from deepjax.study.cost import median_seconds, network_costs
from deepjax.study.study import Options, StudyResults
from deepjax.training.build import model_from
from experiments.inception_module import (
    PRESETS,
    SLIDE_INPUT,
    STUDY,
    InceptionNet,
    draw,
    judge,
    make_arms,
    slide_module,
)
from tests.study.results import arm, results


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
    # The origin of the lecture's 358 million.
    assert 271_351_808 + pixels * bottleneck["conv3x3"] == 358_055_936


@pytest.mark.parametrize(("reduce", "channels"), [(True, 480), (False, 672)])
def test_the_modules_are_as_deep_as_on_the_slide(reduce, channels):
    module = slide_module(reduce)
    out, _ = jax.eval_shape(
        module.init_with_output, jax.random.key(0), jnp.zeros((1, *SLIDE_INPUT))
    )
    assert out.shape == (1, 28, 28, channels)


@pytest.mark.parametrize(
    ("without", "gone"),
    [
        ("1x1", {"conv1x1"}),
        ("3x3", {"reduce3x3", "conv3x3"}),
        ("5x5", {"reduce5x5", "conv5x5"}),
        ("pool", {"project"}),
    ],
)
def test_a_branch_that_is_left_out_has_no_parameters(without, gone):
    def convs(model: InceptionNet) -> set[str]:
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
        return {name for name in variables["params"]["inception2"] if "norm" not in name}

    assert convs(InceptionNet()) - convs(InceptionNet(without=(without,))) == gone


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"without": ("7x7",)}, "7x7"), ({"without": ("pool",), "reduce": False}, "pool")],
)
def test_branches_that_are_not_there_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(InceptionNet(**fields).init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))


@pytest.mark.parametrize("dataset", PRESETS)
def test_naive_modules_of_half_the_width_cost_the_same(dataset):
    arms = make_arms(Options(dataset=dataset), PRESETS[dataset])
    known = network_costs(arms)
    assert abs(known["naive"].macs / known["bottleneck"].macs - 1) < 0.04
    modules = {}
    for name in ("naive", "bottleneck"):
        by_layer = macs_by_layer(
            model_from(arms[name].config, arms[name].make), arms[name].config.input_shape
        )
        modules[name] = sum(
            macs for layer, macs in by_layer.items() if layer.startswith("inception")
        )
    assert modules["naive"] == pytest.approx(modules["bottleneck"], rel=0.002)


def test_the_median_is_over_turns_without_the_first():
    calls = []
    seconds = median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


def five_seeds(error: float) -> ArmResult:
    return arm(error, error, (-0.002, -0.001, 0.0, 0.001, 0.002))


BASE = {"bottleneck": 0.03, "naive": 0.06, "only_1x1": 0.4} | {
    f"without_{branch}": 0.06 for branch in ("1x1", "3x3", "5x5", "pool")
}


def made_up_results(
    ratio: float = 2.6, memory: float = 1.0, itself: float = 1.0, **errors: float
) -> StudyResults:
    """Made-up errors of every arm, and times and bytes of five seeds."""
    measured = []
    for offset in (-0.02, -0.01, 0.0, 0.01, 0.02):
        seconds = {"naive": ratio + offset, "bottleneck": 1.0, "itself": 1 / itself + offset}
        measured.append(
            {"seconds": seconds, "bytes": {"naive": memory * 1e6, "bottleneck": 1e6, "itself": 1e6}}
        )
    return results(
        STUDY, {name: five_seeds(error) for name, error in (BASE | errors).items()}, measured
    )


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        ({}, ["supported", "refuted", "supported", "supported"]),
        ({"ratio": 1.5, "memory": 3.0}, ["refuted", "supported", "supported", "supported"]),
        ({"ratio": 2.0}, ["inconclusive", "refuted", "supported", "supported"]),
        ({"naive": 0.03}, ["supported", "refuted", "inconclusive", "supported"]),
        ({"naive": 0.01}, ["supported", "refuted", "refuted", "supported"]),
        # Nothing is lost without this branch.
        ({"without_pool": 0.03}, ["supported", "refuted", "supported", "refuted"]),
        ({"without_pool": 0.032}, ["supported", "refuted", "supported", "refuted"]),
    ],
)
def test_each_verdict_can_come_out_either_way(change, outcomes):
    found = [verdict.outcome for verdict in judge(made_up_results(**change))[:6]]
    # The counts are exact, and 358 million is not among them.
    assert found == ["supported", "refuted", *outcomes]


def test_the_controls_flip_and_would_be_seen_if_they_did_not():
    controls = judge(made_up_results())[6:]
    assert [control.outcome for control in controls] == ["supported", "refuted", "refuted"]
    assert all(control.is_as_expected for control in controls)
    assert [
        control.is_as_expected for control in judge(made_up_results(itself=4.0, only_1x1=0.01))[6:]
    ] == [True, False, False]


def test_every_figure_is_drawn(tmp_path):
    assert all(figure.path.stat().st_size > 0 for figure in draw(made_up_results(), tmp_path))
