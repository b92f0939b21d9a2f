"""Networks and instruments for the tests of how any network is called."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from deepjax.analysis.network.module import initialise

EXAMPLES, FEATURES, CLASSES = 8, 5, 3


X = jax.random.normal(jax.random.key(1), (EXAMPLES, FEATURES))


Y = jnp.arange(EXAMPLES) % CLASSES


def dropped_head(x: Any, off: Any) -> Any:
    return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=off)(nn.Dense(16)(x)))


class ByFlag(nn.Module):
    @nn.compact
    def __call__(self, x, enable_dropout=True):
        return dropped_head(x, not enable_dropout)


class ByField(nn.Module):
    training: bool = True

    @nn.compact
    def __call__(self, x):
        return dropped_head(x, not self.training)


def loss_of_logits(outputs: Any) -> Any:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), Y[:, None], axis=1))


class Sum(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


def params_only(model: Any) -> Any:
    return {"params": initialise(model, X)["params"]}


class Branching(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(CLASSES)(-x if train else x)
