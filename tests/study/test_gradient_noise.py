"""Gradient noise: rules that can fail; steps to a target and the hyperbola against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from deepjax.analysis import cross_entropy
from deepjax.study.finetune import fewest_steps, iterate_training, steps_to
from deepjax.study.stats.scaling_laws import Hyperbola, fit_hyperbola
from deepjax.training import compile_training, train_config
from experiments.gradient_noise import (
    BEYOND,
    NETWORK,
    ON_THE_WAY,
    PRESETS,
    STUDY,
    NoiseScaleEstimator,
    judge,
)
from tests.study.results import results

PRESET = PRESETS["digits"]


def seed(power: float, ratio: float, shift: float, critical: float) -> dict:
    """A noise scale that is a power of the loss; its mean is `ratio` times the critical batch."""
    at = [round(100 * share) for share in (*ON_THE_WAY, *BEYOND)]
    losses = np.exp(-np.arange(len(at)) / 4 + shift)
    scales, way = losses**power, len(ON_THE_WAY)
    scales = scales / (np.trapezoid(scales[:way], at[:way]) / at[way - 1]) * ratio * critical
    steps = [
        Hyperbola(20.0, 20 * critical).steps(batch) * math.exp(0.1 * shift)
        for batch in PRESET.sizes["batches"]
    ]
    return {"at": at, "losses": losses.tolist(), "scales": scales.tolist(), "steps": steps}


def verdicts(power: float, ratio: float, critical: float = 50):
    seeds = [seed(power * (1 + shift / 9), ratio, shift, critical) for shift in (-0.1, 0.0, 0.1)]
    return judge(results(STUDY, {}, seeds))


@pytest.mark.parametrize(
    ("power", "ratio", "expected"),
    [
        (-1.0, 1.0, ["supported", "supported"]),
        (1.0, 1.0, ["refuted", "supported"]),  # it falls with the loss
        (-1.0, 20.0, ["supported", "refuted"]),
        (-1.0, 0.01, ["supported", "refuted"]),
    ],
)
def test_each_verdict_can_come_out_either_way(power, ratio, expected):
    assert [verdict.outcome for verdict in verdicts(power, ratio)[:2]] == expected


def test_the_controls_flip_and_would_be_seen_if_they_did_not():
    controls = verdicts(-1.0, 1.0)[2:]
    assert [control.is_as_expected for control in controls] == [True, True]
    # The digits have 1437 training images.
    assert not verdicts(-1.0, 1.0, critical=500)[3].is_as_expected


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


@pytest.fixture(scope="module")
def tiny():
    config = train_config(
        "own/stack", batch_size=64, steps=30, learning_rate=0.1, augment=False, warmup_epochs=0.0
    )
    return compile_training(config, make=NETWORK), config


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


def test_the_noise_scale_is_that_of_all_the_images(tiny):
    """Sampled with replacement, the estimate is unbiased: near tr(Sigma) / |G|^2 of the images."""
    programs, config = tiny
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.normal(size=(32, 8, 8, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(10, size=32)),
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
    assert NoiseScaleEstimator(count=4).scale(programs, params, data, rng) == pytest.approx(
        exact, rel=0.2
    )
