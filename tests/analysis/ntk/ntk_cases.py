"""Networks for the tests of tangent kernels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree


class Linear(nn.Module):
    outputs: int = 1

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(x)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(jnp.tanh(nn.Dense(8, name="first")(x)))


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(2, name="head")(x.mean((1, 2)))


@jax.custom_vjp
def square(x):
    """Has a custom derivative, so that JAX has no forward mode for it."""
    return x * x


square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))


class Squared(nn.Module):
    own: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2)(x.reshape(len(x), -1))
        return square(x) if self.own else x * x


class Two(nn.Module):
    """Takes two inputs; with `pair` it returns two arrays."""

    pair: bool

    @nn.compact
    def __call__(self, x, y):
        x, y = nn.Dense(1, name="x")(x), nn.Dense(1, name="y")(y)
        return (x, y) if self.pair else x + y


class Wide(nn.Module):
    """Jacot et al. 2018: f = sqrt(2 / width) a . relu(W x / sqrt(inputs)), weights from N(0, 1)."""

    width: int

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal(1.0)
        first = self.param("first", normal, (x.shape[-1], self.width))
        second = self.param("second", normal, (self.width, 1))
        return math.sqrt(2 / self.width) * nn.relu(x @ first / math.sqrt(x.shape[-1])) @ second


def gaussian(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def init(model, x, seed=0):
    """Variables with running statistics that differ from those of the batch."""
    variables = jax.jit(model.init)(jax.random.key(seed), x)
    return {
        **variables,
        **jax.tree.map(
            lambda leaf: leaf + 0.3, {key: variables[key] for key in variables if key != "params"}
        ),
    }


def jacobian(model, variables, x):
    """(examples, outputs, parameters), at once and without the instrument."""
    flat, unravel = ravel_pytree(variables["params"])
    return np.asarray(
        jax.jit(jax.jacrev(lambda flat: model.apply({**variables, "params": unravel(flat)}, x)))(
            flat
        ),
        float,
    )
