"""Small networks that several studies compare and that are not in the registry."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.models.layers.basic import conv_factory, dense
from deepjax.models.layers.initializers import Initialization, he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.models.layers.pooling import global_avg_pool
from deepjax.models.vgg import VGG

Activation = Literal["relu", "sigmoid", "identity"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "identity": lambda x: x,
}


class Stack(nn.Module):
    """A stack of convolutions of stride 1, each with its activation; average pool; linear.

    images: (batch, height, width, channels) -> float32 logits (batch, num_classes).
    `kernels`: size of each convolution; `padding`: by default the one that keeps the map's size.
    `norm=False`: biases in place of batch norm.
    """

    kernels: tuple[int, ...]
    num_classes: int = 10
    width: int = 16
    activation: Activation = "relu"
    norm: bool = True
    padding: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        conv = conv_factory(he_normal, self.dtype, jnp.float32, use_bias=not self.norm)
        norm = norm_factory(
            "batch" if self.norm else "none", train, "global", self.dtype, jnp.float32
        )
        x = jnp.asarray(images, self.dtype)
        for i, kernel in enumerate(self.kernels, 1):
            x = norm(name=f"norm{i}")(
                conv(self.width, kernel, padding=self.padding, name=f"conv{i}")(x)
            )
            x = ACTIVATIONS[self.activation](x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(global_avg_pool(x))


class PooledVGG(VGG):
    """VGG with the head of GoogLeNet and ResNet: average pool, then one linear layer."""

    def _head(self, x: Array, init: Initialization, train: bool) -> Array:
        return dense(self.num_classes, x.shape[-1], init, jnp.float32, self.param_dtype, "head")(
            global_avg_pool(x)
        )
