"""The CIFAR networks of He et al. 2015 (arXiv:1512.03385, section 4.2) and their plain twins.

| stage  | output map | layers | filters |
|--------|------------|--------|---------|
| stem   | 32 x 32    | 1      | 16      |
| stage1 | 32 x 32    | 2n     | 16      |
| stage2 | 16 x 16    | 2n     | 32      |
| stage3 | 8 x 8      | 2n     | 64      |
| head   | 1 x 1      | 1      | classes |

Depth is 6n + 2. With option A shortcuts the residual network and the plain one hold the same parameters.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.models.layers import batch_norm, conv3x3, he_normal, shortcut_a


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and (if residual) the option A shortcut around them; ReLU after the sum."""

    channels: int
    stride: int
    residual: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = conv3x3(self.dtype, self.param_dtype)
        norm = batch_norm(train, self.dtype, self.param_dtype)
        y = conv(self.channels, strides=self.stride, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.channels, name="conv2")(y)
        y = norm(name="norm2")(y)
        if self.residual:
            y = y + shortcut_a(x, self.channels, self.stride)
        return nn.relu(y)


class CifarResNet(nn.Module):
    """The 6n+2 network for small images (He et al. 2015, Table 6); `residual=False` gives its plain twin.

    images: (batch, height, width, channels) floats of any size and channel count -> float32 logits (batch, num_classes).
    Raises ValueError when `depth` is not 6n + 2.
    """

    depth: int = 20
    num_classes: int = 10
    width: int = 16
    residual: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        x = jnp.asarray(images, self.dtype)
        x = conv3x3(self.dtype, self.param_dtype)(self.width, name="stem_conv")(x)
        x = nn.relu(batch_norm(train, self.dtype, self.param_dtype)(name="stem_norm")(x))
        for stage in range(3):
            for block in range(blocks_per_stage(self.depth)):
                x = BasicBlock(
                    channels=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    residual=self.residual,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=he_normal, dtype=jnp.float32, param_dtype=self.param_dtype, name="head")(x)


def blocks_per_stage(depth: int) -> int:
    """N of the 6n + 2 layers; raises ValueError for any other depth."""
    if depth < 8 or (depth - 2) % 6:
        nearest = max(8, round((depth - 2) / 6) * 6 + 2)
        raise ValueError(f"depth is {depth}; a CIFAR ResNet has 6n + 2 layers (8, 14, 20, ...), the nearest is {nearest}")
    return (depth - 2) // 6
