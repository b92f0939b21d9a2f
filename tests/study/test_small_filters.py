"""What filters cost, exactly; the networks of stages; arms of equal cost."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis import layer_fields
from deepjax.study.arms.rates import SelectedRate
from deepjax.study.cost import NetworkCost, network_cost
from deepjax.study.study import trained_arms
from experiments.small_filters import STUDY, Stages, check_activations, check_cost, filter_cost


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (64, 28), (256, 56)])
def test_three_small_filters_cost_27_and_one_large_49_squares_of_the_channels(channels, side):
    three, one = filter_cost((3, 3, 3), channels, side), filter_cost((7,), channels, side)
    assert (three.weights, one.weights) == (27 * channels**2, 49 * channels**2)
    assert (three.macs, one.macs) == (27 * channels**2 * side**2, 49 * channels**2 * side**2)
    assert three.activations == 3 * 4 * channels * side**2
    assert one.activations == 4 * channels * side**2


def test_the_exact_claims_hold_and_do_not():
    """27 * 256^2 and 49 * 256^2 weights; three outputs of 256 x 56^2 floats and one."""
    cheaper, counts = check_cost()
    smaller, size = check_activations()
    assert cheaper and "1,769,472 weights" in counts and "3,211,264" in counts
    assert not smaller and "9,633,792 bytes" in size and "3,211,264" in size


@pytest.mark.parametrize("kernels", [(3, 3, 3), (7,)])
def test_both_kinds_of_stage_have_equal_receptive_fields(kernels):
    fields = {each.layer: each.size for each in layer_fields(Stages(kernels), (32, 32, 1)).layers}
    assert fields[f"stage1_conv{len(kernels)}"] == (9, 9)  # of the stem 3, of the stage 6 more
    assert fields[f"stage2_conv{len(kernels)}"] == (22, 22)  # the pool's 1, and 6 more at stride 2


def test_a_linear_stage_is_linear_up_to_its_last_relu():
    """Large biases keep both ReLUs active: then the change of the output is linear in the input."""
    model = Stages((3, 3), width=4, stages=1, linear=True)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = model.init(jax.random.key(1), images)
    params = dict(variables["params"])
    for norm, bias in (("stem_norm", 20.0), ("stage1_norm2", 1000.0)):
        params[norm] = {**params[norm], "bias": jnp.full(4, bias)}
    logits: list[Any] = [
        model.apply({**variables, "params": params}, scale * images) for scale in (0.0, 1.0, 2.0)
    ]
    np.testing.assert_allclose(
        logits[2] - logits[0], 2 * (logits[1] - logits[0]), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("preset", ["quick", "small", "gpu"])
def test_arms_of_equal_cost_cost_the_same_within_two_per_cent(preset):
    arms = trained_arms(STUDY, STUDY.presets[preset], dict.fromkeys(STUDY.arms, SelectedRate(0.1)))
    costs: dict[str, NetworkCost] = {name: network_cost(arm) for name, arm in arms.items()}
    three, narrow = costs["three_3x3"], costs["one_narrow_7x7"]
    assert abs(narrow.macs / three.macs - 1) < 0.02 and abs(narrow.params / three.params - 1) < 0.02
    assert costs["three_linear_3x3"] == three
