"""Wide fully connected networks, of which theory speaks: plain or residual, with batch norm or without, or looking linear."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import norm_factory


def mirrored(key: Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> Array:
    """A Gaussian matrix above its negative: a linear map of x from [relu(x), relu(-x)] that keeps its size. shape: (2 n, out).

    Source: Balduzzi et al. 2017 (arXiv:1702.08591), section 4, "looks linear", who take an orthogonal matrix.
    """
    half = he_normal(key, (shape[0] // 2, shape[1]), dtype) / math.sqrt(2)
    return jnp.concatenate([half, -half])


class WideBlock(nn.Module):
    """Norm, ReLU, linear; of a residual block `beta` times that is added to the input.

    `looks_linear`: both halves of the input, relu(x) and relu(-x), into a mirrored kernel.
    """

    residual: bool
    norm: bool
    beta: float
    looks_linear: bool
    train: bool

    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        norm = norm_factory(
            "batch" if self.norm else "none", self.train, "global", jnp.float32, jnp.float32
        )
        y = norm(name="norm")(x)
        y = nn.relu(jnp.concatenate([y, -y], axis=-1) if self.looks_linear else y)
        kernel = mirrored if self.looks_linear else he_normal
        y = nn.Dense(x.shape[-1], use_bias=False, kernel_init=kernel, name="dense")(y)
        return (x + self.beta * y if self.residual else y), None


class WideNet(nn.Module):
    """A linear layer, `depth` blocks as wide as the input, and one output. inputs: (examples, width) -> (examples, 1).

    The setting of Balduzzi et al. 2017 (arXiv:1702.08591), section 3; the blocks are scanned, so any depth compiles as fast as one.
    """

    depth: int
    residual: bool = False
    norm: bool = True
    beta: float = 1.0
    looks_linear: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.Dense(x.shape[-1], use_bias=False, name="first")(x)
        options = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        block = nn.scan(WideBlock, length=self.depth, **options)
        x, _ = block(self.residual, self.norm, self.beta, self.looks_linear, train, name="blocks")(
            x, None
        )
        return nn.Dense(1, use_bias=False, name="last")(x)
