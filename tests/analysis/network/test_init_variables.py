"""Jitted initialisation gives variables bitwise identical to those of linen's init."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import init_variables
from deepjax.models import create_model

SHAPE = (2, 32, 32, 3)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_plain20", "googlenet_bn"])
def test_what_init_draws(name):
    model = create_model(name, num_classes=10, width=4)
    key = jax.random.key(1)
    expected = jax.jit(model.init)(key, jnp.zeros(SHAPE))
    found = init_variables(model, key, SHAPE)
    assert set(found) == {"params", "batch_stats"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7),
        found,
        {name: expected[name] for name in found},
    )


def test_network_without_statistics_has_parameters_alone():
    assert set(init_variables(nn.Dense(3), jax.random.key(0), (1, 2))) == {"params"}


class Centred(nn.Module):
    """A network with a field that no cache can take for a key."""

    mean: np.ndarray

    @nn.compact
    def __call__(self, x):
        """Less the mean."""
        return nn.Dense(2)(x - self.mean)


def test_network_with_an_array_among_its_fields():
    found = init_variables(Centred(np.zeros((1, 3))), jax.random.key(0), (1, 3))
    np.testing.assert_array_equal(found["params"]["Dense_0"]["bias"], np.zeros(2))
