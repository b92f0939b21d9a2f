"""Small networks that several studies compare and that are not in the registry."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.models.googlenet import GoogLeNet, Unit
from deepjax.models.layers.basic import conv_factory
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.models.layers.pooling import global_avg_pool

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


class SmallImageGoogLeNet(GoogLeNet):
    """GoogLeNet for small images: its stem halves them once, in place of three times.

    The stem has no pools and no local response normalisation.
    """

    def _stem(self, x: Array, unit: Unit) -> Array:
        x = unit(x, self._scaled(64), 7, "stem_conv1", stride=2)
        x = unit(x, self._scaled(64), 1, "stem_reduce2")
        return unit(x, self._scaled(192), 3, "stem_conv2")
