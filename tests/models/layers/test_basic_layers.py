"""Basic layers: linen's parameters, and gradients of biases that are exact in 16 bits too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.models.layers.basic import Conv, Dense, broadcast_like, conv_factory, dense
from deepjax.models.layers.initializers import Initialization, he_normal
from deepjax.models.nf_resnet import ScaledStdConv
from deepjax.models.vgg import FullyConnected

KEY = jax.random.key(0)


def layers(dtype):
    """Layers with a bias for maps (batch, height, width, channels)."""
    return {
        "conv": conv_factory(he_normal, dtype, jnp.float32, use_bias=True)(8, 3, name=None),
        "dense": dense(8, 3, Initialization(), dtype, jnp.float32, None),
        "fully connected": FullyConnected(8, 1, True, Initialization(), dtype, jnp.float32),
        "scaled convolution": ScaledStdConv(8, dtype=dtype),
    }


@pytest.mark.parametrize("name", layers(jnp.float32))
def test_the_gradient_of_a_bias_in_bfloat16(name):
    """Linen's own, of the same convolution, is wrong by 73 %."""
    x, weights = (
        jax.random.normal(jax.random.key(i), (16, 28, 28, channels))
        for i, channels in ((1, 3), (2, 8))
    )

    def loss(variables, layer, x):
        return jnp.sum((weights + 0.3) * layer.apply(variables, x).astype(jnp.float32))

    gradients = []
    for dtype in (jnp.float32, jnp.bfloat16):
        layer = layers(dtype)[name]
        variables = layer.init(KEY, x.astype(dtype))
        gradients.append(
            jax.jit(jax.grad(loss), static_argnums=1)(variables, layer, x.astype(dtype))["params"][
                "bias"
            ]
        )
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=2e-3)


def test_the_gradient_of_a_scalar_in_bfloat16():
    x = jax.random.uniform(KEY, (16, 28, 28, 8)).astype(jnp.bfloat16)

    def total(scalar, x):
        return jnp.sum((broadcast_like(scalar, x) * x).astype(jnp.float32))

    for dtype in (jnp.float32, jnp.bfloat16):
        gradient = jax.jit(jax.grad(total))(jnp.ones((), dtype), x)
        np.testing.assert_allclose(
            gradient.astype(jnp.float32), jnp.sum(x.astype(jnp.float32)), rtol=4e-3
        )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Conv(8, (3, 3), biased=True), nn.Conv(8, (3, 3))), (Dense(8), nn.Dense(8))],
)
def test_parameters_and_results_are_linen_s(ours, theirs):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    mine, linen_s = (layer.clone(bias_init=nn.initializers.normal()) for layer in (ours, theirs))
    variables = mine.init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, variables, linen_s.init(KEY, x))
    np.testing.assert_array_equal(mine.apply(variables, x), linen_s.apply(variables, x))
