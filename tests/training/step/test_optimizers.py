"""Schedules and momentum against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.training import TrainConfig
from deepjax.training.config import replace_options, train_config
from deepjax.training.step.optimizers import decay_mask, make_optimizer, make_schedule

# 22 steps per epoch, 44 of warm-up.
CONFIG = train_config(model="cifar_resnet20", batch_size=64, epochs=10, warmup_epochs=2.0)


def rates(config: TrainConfig) -> np.ndarray:
    schedule = make_schedule(config)
    return np.array(
        [float(schedule(jnp.asarray(step, jnp.int32))) for step in range(config.total_steps)]
    )


def test_cosine_with_warmup():
    expected = [(t + 1) / 44 for t in range(44)] + [
        0.5 * (1 + math.cos(math.pi * t / 176)) for t in range(176)
    ]
    np.testing.assert_allclose(rates(CONFIG), expected, atol=1e-6)


def test_steps_of_the_paper_s_recipe():
    """Divided by ten at 32k and 48k of 64k steps (He et al. 2015, section 4.2), here of 160."""
    config = replace_options(CONFIG, steps=160, schedule="step", warmup_epochs=0.0)
    np.testing.assert_allclose(rates(config), [1.0] * 80 + [0.1] * 40 + [0.01] * 40, rtol=1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_momentum_and_decay_by_hand(nesterov, decay_norm_and_bias):
    config = replace_options(
        CONFIG,
        nesterov=nesterov,
        decay_norm_and_bias=decay_norm_and_bias,
        weight_decay=0.1,
        momentum=0.5,
    )
    optimizer = make_optimizer(config)
    params = {"conv": {"kernel": jnp.full((2, 2), 3.0)}, "norm": {"scale": jnp.full((2,), 5.0)}}
    state = optimizer.init(params)
    trace = {"kernel": 0.0, "scale": 0.0}
    for gradient in (1.0, -2.0, 0.5):
        updates, state = optimizer.update(
            {
                "conv": {"kernel": jnp.full((2, 2), gradient)},
                "norm": {"scale": jnp.full((2,), gradient)},
            },
            state,
            params,
            learning_rate=jnp.ones(()),
        )
        for name, value, update, decayed in (
            ("kernel", 3.0, updates["conv"]["kernel"], True),
            ("scale", 5.0, updates["norm"]["scale"], decay_norm_and_bias),
        ):
            full = gradient + (0.1 * value if decayed else 0.0)
            trace[name] = full + 0.5 * trace[name]
            expected = full + 0.5 * trace[name] if nesterov else trace[name]
            np.testing.assert_allclose(-update, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "milestones", "expected"),
    [
        (3, (0.5, 0.75), [1, 1, 0.01]),  # both fall on step 2
        (4, (0.5, 0.75), [1, 1, 0.1, 0.01]),
        (2, (0.5, 0.6, 0.7), [1, 0.001]),
        (1, (0.1, 0.2), [1]),  # the first step has the peak rate
    ],
)
def test_milestones_that_coincide_in_a_short_training_all_count(steps, milestones, expected):
    config = replace_options(
        CONFIG, steps=steps, schedule="step", milestones=milestones, warmup_epochs=0.0
    )
    np.testing.assert_allclose(rates(config), expected, rtol=1e-5)


@pytest.mark.parametrize("every", [1, 41, 82, 400])
def test_exponential_decay_falls_at_its_step(every):
    """XLA divides by 41 as a product with 1 / 41, and finds 82 / 41 less than 2."""
    config = replace_options(
        CONFIG, batch_size=1437, schedule="exponential", decay_rate=0.5, decay_epochs=float(every)
    )
    schedule = jax.jit(make_schedule(replace_options(config, warmup_epochs=0.0, steps=10_000)))
    steps = [number * every + more for number in range(6) for more in (0, every - 1)]
    np.testing.assert_allclose(
        [float(schedule(step)) for step in steps],
        [0.5 ** (step // every) for step in steps],
        rtol=1e-5,
    )


def test_decay_epochs_of_no_step_are_refused():
    with pytest.raises(
        InputError, match=r"decay_epochs is 0\.01; allowed: half a step or more, 0\.0227 epochs"
    ):
        make_schedule(replace_options(CONFIG, schedule="exponential", decay_epochs=0.01))


def test_weights_are_decayed_by_their_axes_as_in_timm():
    """Timm's param_groups_weight_decay decays what has two axes or more; ours are stacked too."""
    params = {
        "own": {"w": jnp.ones((2, 3)), "b": jnp.ones((3,)), "temperature": jnp.ones(())},
        "embed": {"embedding": jnp.ones((5, 2))},
        "stage1_blocks": {
            "conv": {"kernel": jnp.ones((4, 3, 3, 2, 2)), "bias": jnp.ones((4, 2))},
            "norm": {"scale": jnp.ones((4, 2)), "gain": jnp.ones((4, 2))},
        },
    }
    assert decay_mask(params) == {
        "own": {"w": True, "b": False, "temperature": False},
        "embed": {"embedding": True},
        "stage1_blocks": {
            "conv": {"kernel": True, "bias": False},
            "norm": {"scale": False, "gain": False},
        },
    }


@jax.numpy_dtype_promotion("standard")  # optax's Adam mixes counts and rates
def test_muon_takes_a_kernel_of_three_axes_as_a_matrix_but_for_our_stacked_blocks():
    """Attention's is (in, heads, features); near-orthogonal: all singular values nearly equal."""
    config = replace_options(CONFIG, optimizer="muon", weight_decay=0.0)
    gradient = jax.random.normal(jax.random.key(0), (4, 6, 3)) * jnp.array([[[1.0, 4.0, 16.0]]])
    params = {name: {"kernel": jnp.zeros((4, 6, 3))} for name in ("query", "stage1_blocks")}
    gradients = {name: {"kernel": gradient} for name in params}
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(
        gradients, optimizer.init(params), params, learning_rate=jnp.ones(())
    )

    def ratio(matrix):
        values = jnp.linalg.svd(matrix, compute_uv=False)
        return float(values.max() / values.min())

    assert ratio(updates["query"]["kernel"].reshape(24, 3)) < 2
    assert all(ratio(block) < 2 for block in updates["stage1_blocks"]["kernel"])
    assert max(ratio(block) for block in updates["query"]["kernel"]) > 2
