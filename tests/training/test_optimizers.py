"""Schedules and momentum against their closed forms."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.training import TrainConfig
from deepjax.training.optimizers import make_optimizer, make_schedule

CONFIG = TrainConfig(model="cifar_resnet20", batch_size=64, epochs=10, warmup_epochs=2.0)  # 22 steps an epoch, 44 of warm-up


def rates(config: TrainConfig) -> np.ndarray:
    schedule = make_schedule(config)
    return np.array([float(schedule(jnp.asarray(step, jnp.int32))) for step in range(config.total_steps)])


def test_cosine_with_warmup():
    expected = [(t + 1) / 44 for t in range(44)] + [0.5 * (1 + math.cos(math.pi * t / 176)) for t in range(176)]
    np.testing.assert_allclose(rates(CONFIG), expected, atol=1e-6)


def test_steps_of_the_paper_s_recipe():
    """Divided by ten at 32k and 48k of 64k iterations (He et al. 2015, section 4.2), here at the same fractions of 160 steps."""
    config = dataclasses.replace(CONFIG, steps=160, schedule="step", warmup_epochs=0.0)
    np.testing.assert_allclose(rates(config), [1.0] * 80 + [0.1] * 40 + [0.01] * 40, rtol=1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay_all", [True, False])
def test_momentum_and_decay_by_hand(nesterov, decay_all):
    config = dataclasses.replace(CONFIG, nesterov=nesterov, decay_all=decay_all, weight_decay=0.1, momentum=0.5)
    optimizer = make_optimizer(config)
    params = {"conv": {"kernel": jnp.full((2, 2), 3.0)}, "norm": {"scale": jnp.full((2,), 5.0)}}
    state = optimizer.init(params)
    trace = {"kernel": 0.0, "scale": 0.0}
    for gradient in (1.0, -2.0, 0.5):
        updates, state = optimizer.update(
            {"conv": {"kernel": jnp.full((2, 2), gradient)}, "norm": {"scale": jnp.full((2,), gradient)}}, state, params
        )
        for name, value, update, decayed in (
            ("kernel", 3.0, updates["conv"]["kernel"], True),
            ("scale", 5.0, updates["norm"]["scale"], decay_all),
        ):
            full = gradient + (0.1 * value if decayed else 0.0)
            trace[name] = full + 0.5 * trace[name]
            expected = full + 0.5 * trace[name] if nesterov else trace[name]
            np.testing.assert_allclose(update, expected, rtol=1e-6)
