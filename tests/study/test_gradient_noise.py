"""Gradient noise: steps to a target, the hyperbola and the noise scale against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from deepjax.analysis import cross_entropy
from deepjax.study.finetune import fewest_steps, iterate_training, steps_to
from deepjax.study.stats.hyperbola import Hyperbola, fit_hyperbola
from deepjax.training import compile_training, train_config
from experiments.gradient_noise import (
    BEYOND,
    ON_THE_WAY,
    NoiseScaleEstimator,
    StridedNetwork,
    exponent,
    mean_scale,
)


def test_the_hyperbola_is_found_again():
    truth, batches = Hyperbola(30.0, 4000.0), [4, 16, 64, 256, 1024]
    steps = [truth.steps(batch) for batch in batches]
    found = fit_hyperbola(batches, steps)
    assert (found.s_min, found.e_min, found.critical) == pytest.approx(
        (30.0, 4000.0, 4000 / 30), rel=1e-4
    )
    for batch, each in zip(batches, steps, strict=True):  # McCandlish et al. 2018, eq. 2.11
        assert (each / truth.s_min - 1) * (batch * each / truth.e_min - 1) == pytest.approx(1)
    with pytest.raises(ValueError, match="three batch sizes"):
        fit_hyperbola([4, 16, 64], [100, math.inf, 20])


def test_the_exponent_and_the_mean_noise_scale():
    losses = np.exp(-np.arange(10) / 4)
    assert exponent(losses.tolist(), (7 * losses**-1.5).tolist()) == pytest.approx(-1.5)
    at = [round(100 * fraction) for fraction in (*ON_THE_WAY, *BEYOND)]
    # Of a line from 1 to 3 the mean is 2; what comes after the target does not count.
    scales = [1 + 2 * step / 100 for step in at[: len(ON_THE_WAY)]] + [1e9] * len(BEYOND)
    assert mean_scale(at, scales) == pytest.approx(2)


@pytest.fixture(scope="module")
def tiny():
    config = train_config(
        "own/strided", batch_size=64, steps=30, learning_rate=0.1, augment=False, warmup_epochs=0.0
    )
    return compile_training(config, make=StridedNetwork), config


def test_states_are_those_of_the_training_and_steps_are_counted(tiny):
    programs, config = tiny
    assert [(step, int(state.step)) for step, state in iterate_training(programs, config)] == [
        (step, step) for step in range(31)
    ]
    seen = []

    def falls(params) -> float:
        seen.append(params)
        return 1.0 / len(seen)

    # Evaluated after every step, as 10 % of few steps is less than one.
    assert steps_to(programs, config, falls, target=0.25) == 4
    assert steps_to(programs, config, lambda params: 1.0, target=0.5) == math.inf
    assert steps_to(programs, config, lambda params: 1.0, target=1.0, max_steps=0) == math.inf
    assert steps_to(programs, config, lambda params: math.nan, target=0.5) == math.inf


def test_the_fewest_steps_are_those_of_the_best_rate(tiny):
    """The loss is the distance that the weights have gone: the larger rate arrives first."""
    programs, config = tiny
    start = programs.fresh_state(config).params["conv1"]["kernel"].copy()

    def left(params):
        return 1.0 - float(jnp.linalg.norm(params["conv1"]["kernel"] - start))

    steps, rate = fewest_steps(programs, config, left, target=0.95, rates=(0.001, 0.1))
    assert rate == 0.1 and steps == steps_to(programs, config, left, 0.95)


def test_the_noise_scale_is_that_of_all_the_images_and_copies_double_it(tiny):
    """Sampled with replacement, the estimate is unbiased: near tr(Sigma) / |G|^2 of the images."""
    programs, config = tiny
    data = {
        "image": jnp.asarray(np.random.default_rng(0).normal(size=(32, 8, 8, 1)), jnp.float32),
        "label": jnp.asarray(np.random.default_rng(1).integers(10, size=32)),
    }
    params = programs.fresh_state(config).params

    def loss(params, batch):
        return cross_entropy(programs.model.apply({"params": params}, batch["image"]), batch)

    gradient = jax.jit(lambda params, batch: ravel_pytree(jax.grad(loss)(params, batch))[0])
    each = np.array(
        [
            gradient(params, {name: array[i : i + 1] for name, array in data.items()})
            for i in range(32)
        ]
    )
    exact = each.var(axis=0).sum() / (each.mean(axis=0) ** 2).sum()
    for copies in (1, 2):
        found = NoiseScaleEstimator(copies=copies).scale(
            programs, params, data, np.random.default_rng(2)
        )
        assert found == pytest.approx(copies * exact, rel=0.2)
