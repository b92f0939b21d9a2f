"""What filters cost, exactly; the network of stages; and the study's verdicts on made-up errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis import layer_fields
from deepjax.study.arm_result import ArmResult
from deepjax.study.cost import network_costs
from deepjax.study.stats.claims import ablation_outcome
from deepjax.study.stats.intervals import Interval
from deepjax.study.study import Options
from experiments.small_filters import PRESETS, STUDY, Stages, draw, filter_cost, judge, make_arms
from tests.study.results import arm, results


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (64, 28), (256, 56)])
def test_three_small_filters_cost_27_and_one_large_49_squares_of_the_channels(channels, side):
    three, one = filter_cost((3, 3, 3), channels, side), filter_cost((7,), channels, side)
    assert (three.weights, one.weights) == (27 * channels**2, 49 * channels**2)
    assert (three.macs, one.macs) == (27 * channels**2 * side**2, 49 * channels**2 * side**2)
    assert (three.activations, one.activations) == (
        3 * 4 * channels * side**2,
        4 * channels * side**2,
    )


@pytest.mark.parametrize("kernels", [(3, 3, 3), (7,)])
def test_both_kinds_of_stage_see_as_much(kernels):
    fields = {each.layer: each.size for each in layer_fields(Stages(kernels), (32, 32, 1)).layers}
    assert fields[f"stage1_conv{len(kernels)}"] == (9, 9)  # of the stem 3, of the stage 6 more
    assert fields[f"stage2_conv{len(kernels)}"] == (22, 22)  # the pool's 1, and 6 more at stride 2


def test_a_linear_stage_is_linear_but_for_its_end():
    """Large biases keep both ReLUs active: then the change of the output is linear in the input."""
    model = Stages((3, 3), width=4, stages=1, linear=True)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = model.init(jax.random.key(1), images)
    params = dict(variables["params"])
    for norm, bias in (("stem_norm", 20.0), ("stage1_norm2", 1000.0)):
        params[norm] = {**params[norm], "bias": jnp.full(4, bias)}
    logits = [
        model.apply({**variables, "params": params}, scale * images) for scale in (0.0, 1.0, 2.0)
    ]
    np.testing.assert_allclose(
        logits[2] - logits[0], 2 * (logits[1] - logits[0]), rtol=1e-3, atol=1e-2
    )


def test_arms_of_equal_cost_cost_the_same_within_two_per_cent():
    known = network_costs(make_arms(Options(), PRESETS["digits"]))
    three, narrow = known["three_3x3"], known["one_narrow_7x7"]
    assert abs(narrow.macs / three.macs - 1) < 0.02 and abs(narrow.params / three.params - 1) < 0.02
    assert known["three_linear_3x3"] == three


def five_seeds(error: float) -> ArmResult:
    return arm(error, error, (-0.002, -0.001, 0.0, 0.001, 0.002))


BASE = {
    "one_7x7": 0.06,
    "three_3x3": 0.03,
    "three_linear_3x3": 0.06,
    "one_narrow_7x7": 0.07,
    "three_1x1": 0.4,
}


def verdicts(**change: float):
    errors = {name: five_seeds(error) for name, error in (BASE | change).items()}
    return judge(results(STUDY, errors))


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        ({}, ["supported", "supported", "supported", "supported"]),
        ({"three_3x3": 0.06}, ["inconclusive", "supported", "inconclusive", "supported"]),
        ({"three_3x3": 0.1}, ["refuted", "refuted", "refuted", "supported"]),
        # Depth alone is enough.
        ({"three_linear_3x3": 0.03}, ["supported", "supported", "inconclusive", "refuted"]),
        ({"three_linear_3x3": 0.05}, ["supported", "supported", "supported", "inconclusive"]),
    ],
)
def test_each_verdict_can_come_out_either_way(change, outcomes):
    found = [verdict.outcome for verdict in verdicts(**change)[:6]]
    # The cost is exact: fewer weights, more activations.
    assert found == ["supported", "refuted", *outcomes]


def test_the_controls_flip_and_would_be_seen_if_they_did_not():
    controls = verdicts()[6:]
    assert [control.outcome for control in controls] == ["refuted", "supported", "refuted"]
    assert all(control.is_as_expected for control in controls)
    assert not verdicts(three_1x1=0.01)[-1].is_as_expected


@pytest.mark.parametrize(
    ("rises", "outcome"),
    [
        ([(0.01, 0.03), (0.002, 0.008)], "supported"),
        ([(0.01, 0.03), (-0.004, 0.008)], "refuted"),  # below a point: not needed
        ([(0.01, 0.03), (-0.004, 0.02)], "inconclusive"),
    ],
)
def test_each_part_is_needed_or_one_is_spare(rises, outcome):
    assert (
        ablation_outcome([Interval((low + high) / 2, low, high) for low, high in rises], 0.01)
        == outcome
    )


def test_the_figure_is_drawn(tmp_path):
    found = results(STUDY, {name: five_seeds(error) for name, error in BASE.items()})
    assert draw(found, tmp_path)[0].path.stat().st_size > 0
