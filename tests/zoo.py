"""Linen modules of the awkward kinds, small, from (batch, features) to (batch, 3) unless they say otherwise."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def complex_normal(key, shape, dtype=jnp.complex64):
    """Standard complex numbers over the square root of the inputs."""
    return jax.random.normal(key, shape, dtype) / jnp.asarray(shape[0] ** 0.5, dtype)


class ComplexWeights(nn.Module):
    """Complex weights and biases behind real ones."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(3, name="real")(x))
        w = self.param("w", complex_normal, (3, 3))
        b = self.param("b", complex_normal, (3,))
        z = x.astype(w.dtype) @ w + b[None]
        return jnp.square(z.real) + jnp.square(z.imag)


class Weighted(nn.Module):
    """A parameter named "layer_instance/kernel/scale"."""

    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(3), name="outer")(x)


class Partitioned(nn.Module):
    """Boxed kernels of both kinds, and a bias that is not boxed."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        x = nn.Dense(3, kernel_init=nn.with_partitioning(init, (None, "model")), name="mesh")(x)
        return nn.Dense(3, kernel_init=nn.with_logical_partitioning(init, ("in", "out")), name="logical")(jnp.tanh(x))


class Attention(nn.Module):
    """Two tokens of half the features each; kernels (D, heads, dim) and (heads, dim, D)."""

    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        tokens = x.reshape(len(x), 2, -1)
        attention = nn.MultiHeadDotProductAttention(2, qkv_features=4, out_features=3, use_bias=self.use_bias)
        return attention(tokens).mean(1)


class Typed(nn.Module):
    """Parameters and results of a dtype."""

    dtype: Any = jnp.float64

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, dtype=self.dtype, param_dtype=self.dtype, name="first")(x)
        return nn.Dense(3, dtype=self.dtype, param_dtype=self.dtype, name="head")(jnp.tanh(x))


class Tree(nn.Module):
    """A parameter that is itself a tuple of arrays."""

    @nn.compact
    def __call__(self, x):
        weight, bias = self.param("affine", lambda key: (jax.random.normal(key, (x.shape[-1], 3)), jnp.ones(3)))
        return jnp.tanh(x @ weight) + bias[None]


class Odd(nn.Module):
    """Complex, boxed, oddly named and nested parameters in one network."""

    @nn.compact
    def __call__(self, x):
        for layer in (Partitioned(name="boxed"), Weighted(name="named"), Tree(name="nested"), ComplexWeights(name="complex")):
            x = layer(x)
        return x
