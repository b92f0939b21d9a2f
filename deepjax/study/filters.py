"""Stages of small filters against stages of large ones: a network of a few stages, and what a stage costs, exactly."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.analysis import cost
from deepjax.models.layers.basic import conv_factory
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.models.layers.pooling import global_avg_pool, max_pool
from deepjax.study.networks import Stack


class Stages(nn.Module):
    """A 3x3 convolution, then stages of the same convolutions with a 2x2 max pool between them; average pool; linear.

    images: (batch, height, width, channels) -> float32 logits (batch, num_classes). `kernels`: size of each convolution of a stage;
    all have `width` filters, batch norm and a ReLU. `linear`: a stage has its ReLU only at its end, so that more convolutions
    bring more depth, and no more nonlinearity.
    """

    kernels: tuple[int, ...]
    num_classes: int = 10
    width: int = 16
    stages: int = 2
    linear: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        conv = conv_factory(he_normal, self.dtype, jnp.float32)
        norm = norm_factory("batch", train, "global", self.dtype, jnp.float32)
        x = nn.relu(
            norm(name="stem_norm")(
                conv(self.width, 3, name="stem_conv")(jnp.asarray(images, self.dtype))
            )
        )
        for stage in range(1, self.stages + 1):
            x = x if stage == 1 else max_pool(x, 2, 2)
            for i, kernel in enumerate(self.kernels, 1):
                name = f"stage{stage}_{{}}{i}"
                x = norm(name=name.format("norm"))(
                    conv(self.width, kernel, name=name.format("conv"))(x)
                )
                x = x if self.linear and i < len(self.kernels) else nn.relu(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(global_avg_pool(x))


@dataclasses.dataclass(frozen=True)
class FilterCost:
    """What convolutions that keep their channels cost for one image."""

    weights: int
    macs: int
    activations: int
    """Bytes of their outputs, which the backward pass keeps, in float32."""


def filter_cost(kernels: tuple[int, ...], channels: int, side: int) -> FilterCost:
    """The convolutions alone, one after the other on a map of side x side x channels, from their traced computation."""
    rows = cost(Stack(kernels, width=channels), (side, side, channels)).layers
    convs = [row for row in rows if row.layer.startswith("conv")]
    return FilterCost(
        *(
            sum(getattr(row, name) for row in convs)
            for name in ("params", "macs", "activation_bytes")
        )
    )
