"""The solution by construction: a shallow network with identity layers inserted is a deeper one of equal outputs.

He et al. 2015 (arXiv:1512.03385), section 1: "the added layers are identity mapping, and the other layers are copied from the
learned shallower model. The existence of this constructed solution indicates that a deeper model should produce no higher training
error".
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
Moments = tuple[Array, Array]
"""Mean and variance by channel, (channels,) each."""


def stage_moments(model: nn.Module, variables: Variables, images: Array) -> dict[int, Moments]:
    """Mean and variance by channel of each stage's output, in evaluation mode. images: (batch, height, width, channels)."""
    stages = {
        name: x
        for name, x in features(model, variables, images).items()
        if name.startswith("stage")
    }
    return {
        int(name.removeprefix("stage")): (jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2)))
        for name, x in stages.items()
    }


def with_identities(
    variables: Variables, moments: Mapping[int, Moments], blocks: int
) -> dict[str, Any]:
    """The variables of the plain network of `blocks` basic blocks a stage that computes what the shallower one computes.

    variables: of a plain `deepjax.models.ResNet` with block="basic" and batch norm, unrolled. moments: of each stage's output.
    Blocks of identities come at the end of each stage, where all values have been through a ReLU, so that another changes nothing.
    In evaluation mode the outputs are equal, up to rounding, whatever the moments are. In training mode batch norm uses the batch's
    own statistics, and an inserted layer passes on what it is given as far as those agree with the moments.
    """
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    for stage, (mean, var) in moments.items():
        for number in range(_blocks(params, stage) + 1, blocks + 1):
            name = f"stage{stage}_block{number}"
            params[name], stats[name] = identity_block(mean, var)
    return {"params": params, "batch_stats": stats}


def identity_block(mean: Array, var: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics of a plain basic block that passes on what is at least 0. mean, var: (channels,)."""
    channels = mean.shape[0]
    kernel = jnp.zeros((3, 3, channels, channels)).at[1, 1].set(jnp.eye(channels))
    norm = {"scale": jnp.sqrt(var + EPSILON), "bias": mean}
    params = {
        "conv1": {"kernel": kernel},
        "norm1": norm,
        "conv2": {"kernel": kernel},
        "norm2": norm,
    }
    return params, {name: {"mean": mean, "var": var} for name in ("norm1", "norm2")}


def with_random_layers(variables: Variables, deeper: Variables) -> dict[str, Any]:
    """The layers that both have are those of `variables`, the others are those of the deeper network: the control."""
    return {name: {**deeper[name], **variables[name]} for name in ("params", "batch_stats")}


def _blocks(params: Mapping[str, Any], stage: int) -> int:
    return sum(re.fullmatch(rf"stage{stage}_block\d+", name) is not None for name in params)
