"""A network in which one part alone goes bad at a pixel brighter than any image has.

This isolates each part of the guard.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.data import dataset_info
from deepjax.data.augment.basic import normalize

DIGITS = dataset_info("digits")
BRIGHT = {
    "loss": 1000.0,
    "statistics": 2000.0,
    "gradient": 3000.0,
    "parameters": 4000.0,
    "optimizer state": 5000.0,
}
# The maximum of float32 is 3.4e38. Of 3e38 SGD's trace is finite, but its Nesterov update is not;
# of 1e25 only the square is not.
PULLS = {"gradient": jnp.nan, "parameters": 3e38, "optimizer state": 1e25}


class Trapped(nn.Module):
    """A classifier with a statistic and a parameter that act only at a pixel of `BRIGHT`."""

    net: nn.Module

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Logits, as every network gives them."""
        lever = self.param("lever", nn.initializers.zeros, (), jnp.float32)
        statistic = self.variable("batch_stats", "trap", jnp.zeros, (), jnp.float32)
        brightest = jnp.max(images, initial=0.0)
        fires = {
            part: _between(brightest, value - 500, value + 500) for part, value in BRIGHT.items()
        }
        any_fires = jnp.any(jnp.stack(list(fires.values())))
        logits = self.net(jnp.where(any_fires, jnp.minimum(images, 1.0), images), train)
        if train and self.is_mutable_collection("batch_stats"):
            statistic.value = jnp.where(fires["statistics"], jnp.nan, 0.0)
        pull = sum(
            (jnp.where(fires[part], value, 0.0) for part, value in PULLS.items()), jnp.zeros(())
        )
        return _hidden(logits, fires["loss"]) + _pulled(lever, pull)


def _between(brightest: Array, low: float, high: float) -> Array:
    return (brightest > _normalized(low)) & (brightest < _normalized(high))


def _normalized(pixel: float) -> Array:
    return normalize(jnp.full((1, *DIGITS.shape), pixel), DIGITS)[0, 0, 0, 0]


@jax.custom_vjp
def _hidden(logits: Array, fires: Array) -> Array:
    """NaN where it fires, with a gradient that is finite all the same."""
    return jnp.where(fires, jnp.nan, logits)


def _hidden_forward(logits: Array, fires: Array) -> tuple[Array, None]:
    return _hidden(logits, fires), None


def _hidden_backward(_: None, cotangent: Array) -> tuple[Array, None]:
    return jnp.nan_to_num(cotangent, nan=0.0), None


@jax.custom_vjp
def _pulled(lever: Array, pull: Array) -> Array:
    """Zero, whose gradient by the lever is the pull."""
    return 0.0 * lever


def _pulled_forward(lever: Array, pull: Array) -> tuple[Array, Array]:
    return _pulled(lever, pull), pull


def _pulled_backward(pull: Array, _: Any) -> tuple[Array, None]:
    return pull, None


_hidden.defvjp(_hidden_forward, _hidden_backward)
_pulled.defvjp(_pulled_forward, _pulled_backward)
