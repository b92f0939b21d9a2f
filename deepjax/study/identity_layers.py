"""The solution by construction: identity layers make a deeper network of a shallower one.

He et al. 2015 (arXiv:1512.03385), section 1: "the added layers are identity mapping, and the other
layers are copied from the learned shallower model. The existence of this constructed solution
indicates that a deeper model should produce no higher training error".
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.models.features import features

EPSILON = 1e-5  # of batch norm in deepjax.models.layers.norms
Variables = Mapping[str, Any]
Moments = tuple[Array, Array]  # mean and variance by channel, (channels,) each


def stage_moments(model: nn.Module, variables: Variables, images: Array) -> dict[int, Moments]:
    """Mean and variance by channel of each stage's output, in evaluation mode."""
    return {
        int(name.removeprefix("stage")): (jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2)))
        for name, x in features(model, variables, images).items()
        if name.startswith("stage")
    }


def with_identities(
    variables: Variables, moments: Mapping[int, Moments], blocks: int
) -> dict[str, Any]:
    """The variables of a deeper plain network of equal outputs: identities added to each stage.

    variables: of an unrolled plain `ResNet` of basic blocks with batch norm; `blocks`: by stage, of
    the deeper one. Identities are at the end of a stage, where another ReLU changes nothing. In
    evaluation mode the outputs are equal up to rounding, for any moments; in training mode as far
    as the batch's statistics agree with the moments.
    """
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    for stage, (mean, var) in moments.items():
        for number in range(_blocks(params, stage) + 1, blocks + 1):
            name = f"stage{stage}_block{number}"
            params[name], stats[name] = identity_block(mean, var)
    return {"params": params, "batch_stats": stats}


def identity_block(mean: Array, var: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics of a plain basic block that is the identity on values >= 0."""
    channels = mean.shape[0]
    kernel = jnp.zeros((3, 3, channels, channels)).at[1, 1].set(jnp.eye(channels))
    norm = {"scale": jnp.sqrt(var + EPSILON), "bias": mean}
    conv = {"kernel": kernel}
    params = {"conv1": conv, "norm1": norm, "conv2": conv, "norm2": norm}
    return params, {name: {"mean": mean, "var": var} for name in ("norm1", "norm2")}


def with_random_layers(shallower: Variables, deeper: Variables) -> dict[str, Any]:
    """The deeper network's variables, with those of the shallower one where it has them."""
    return {name: {**deeper[name], **shallower[name]} for name in ("params", "batch_stats")}


def _blocks(params: Mapping[str, Any], stage: int) -> int:
    return sum(re.fullmatch(rf"stage{stage}_block\d+", name) is not None for name in params)
