"""Pre-activation residual networks: norm and ReLU before each convolution, identity shortcuts.

He et al. 2016 (arXiv:1603.05027, Figure 4e) and Wide ResNet (Zagoruyko and Komodakis 2016,
arXiv:1605.07146):

| stage  | ImageNet 50 (3, 4, 6, 3)        | CIFAR 164 (n = 18)           | WRN-d-k              |
|--------|---------------------------------|------------------------------|----------------------|
| stem   | 7x7, 64, stride 2; 3x3 max pool | 3x3, 16                      | 3x3, 16              |
| stage1 | [1x1, 64; 3x3, 64; 1x1, 256]    | [1x1, 16; 3x3, 16; 1x1, 64]  | [3x3, 16k; 3x3, 16k] |
| stage2 | [1x1, 128; 3x3, 128; 1x1, 512]  | [1x1, 32; 3x3, 32; 1x1, 128] | [3x3, 32k; 3x3, 32k] |
| stage3 | [1x1, 256; 3x3, 256; 1x1, 1024] | [1x1, 64; 3x3, 64; 1x1, 256] | [3x3, 64k; 3x3, 64k] |
| stage4 | [1x1, 512; 3x3, 512; 1x1, 2048] |                              |                      |

CIFAR 1001 has n = 111, WRN-d-k n = (d - 4) / 6 blocks per stage; later stages halve the map. The
head is norm, ReLU, average pool, linear. A projection takes the pre-activated input, as in the
authors' resnet-pre-act.lua, and has no norm.
"""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.errors import require
from deepjax.models.layers.basic import (
    ModuleDef,
    Sum,
    check_fields,
    conv_factory,
    dense,
    shortcut_a,
    tag_feature,
    tag_stage,
)
from deepjax.models.layers.input_checks import as_images, at_least_float32
from deepjax.models.layers.norms import Norm, Scope, norm_factory
from deepjax.models.layers.pooling import global_avg_pool, max_pool, shortcut_pool
from deepjax.models.layers.scanned_blocks import run_blocks
from deepjax.models.resnet import INITIALIZATION, STAGES, Block, Stem, StrideIn


class PreActBlock(nn.Module):
    """Pre-activation block: norm, ReLU, convolution, two (basic) or three times; the shortcut."""

    block: Block
    channels: int
    out: int
    stride: int
    residual: bool
    shortcut: Literal["A", "B", "D"]
    stride_in: StrideIn
    dropout: float
    train: bool
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: Array) -> Array:
        active = nn.relu(self.norm(name="norm1")(x))
        if self.block == "basic":
            y = self.conv(self.channels, 3, self.stride, name="conv1")(active)
            y = nn.relu(self.norm(name="norm2")(y))
            y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
            y = self.conv(self.out, 3, name="conv2")(y)
        else:
            first, second = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
            y = self.conv(self.channels, 1, first, name="conv1")(active)
            y = self.conv(self.channels, 3, second, name="conv2")(
                nn.relu(self.norm(name="norm2")(y))
            )
            y = self.conv(self.out, 1, name="conv3")(nn.relu(self.norm(name="norm3")(y)))
        if not self.residual:
            return y
        if self.stride == 1 and x.shape[-1] == self.out:
            return Sum(name="sum")(x, y)
        if self.shortcut == "A":
            return Sum(name="sum")(shortcut_a(x, self.out, self.stride), y)
        pooled, stride = (
            (shortcut_pool(active, self.stride), 1)
            if self.shortcut == "D"
            else (active, self.stride)
        )
        return Sum(name="sum")(self.conv(self.out, 1, stride, name="shortcut_conv")(pooled), y)


class PreActResNet(nn.Module):
    """Stem, stages of pre-activation blocks, norm, ReLU, average pool, linear.

    images: (batch, height, width, channels) floats of any size and number of channels -> float32
    logits (batch, num_classes). residual=False: the plain twin. `width`: filters of the first
    stage's 3x3 convolutions, doubled by each later stage. `stem_width`: filters of the stem.
    `dropout`: between the convolutions of a basic block (Wide ResNet, section 2.4). The other
    fields are those of `ResNet`.
    """

    stages: tuple[int, ...] = STAGES[50]
    block: Block = "bottleneck"
    num_classes: int = 1000
    width: int = 64
    stem_width: int = 64
    stem: Stem = "imagenet"
    residual: bool = True
    shortcut: Literal["A", "B", "D"] = "B"
    stride_in: StrideIn = "3x3"
    dropout: float = 0.0
    norm: Norm = "batch"
    bn_scope: Scope = "global"
    initialization: Literal["paper", "torchvision"] = "paper"
    scan: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_fields(self)
        init = INITIALIZATION[self.initialization]
        conv = conv_factory(init.conv, self.dtype, self.param_dtype, use_bias=self.norm == "none")
        norm = norm_factory(self.norm, train, self.bn_scope, self.dtype, self.param_dtype)
        x = preact_stem(as_images(images, self.dtype), self.stem, self.stem_width, conv, norm)
        x = tag_stage(self, "stem", x)
        for stage, blocks in enumerate(self.stages):
            planes = self.width * 2**stage

            def block(stride: int, name: str, planes: int = planes) -> PreActBlock:
                return PreActBlock(
                    block=self.block,
                    channels=planes,
                    out=4 * planes if self.block == "bottleneck" else planes,
                    stride=stride,
                    residual=self.residual,
                    shortcut=self.shortcut,
                    stride_in=self.stride_in,
                    dropout=self.dropout,
                    train=train,
                    conv=conv,
                    norm=norm,
                    name=name,
                )

            x = run_blocks(block, x, stage + 1, blocks, self.scan)
            x = tag_stage(self, f"stage{stage + 1}", x)
        x = global_avg_pool(nn.relu(norm(name="head_norm")(x)))
        x = tag_feature(self, "pooled", x)
        return dense(
            self.num_classes,
            x.shape[-1],
            init,
            at_least_float32(self.dtype),
            self.param_dtype,
            "head",
        )(x)


def preact_stem(x: Array, kind: Stem, width: int, conv: ModuleDef, norm: ModuleDef) -> Array:
    """The stem of `ResNet` without its last norm and ReLU, which the first block has."""
    if kind == "cifar":
        return conv(width, 3, name="stem_conv")(x)
    if kind == "imagenet":
        return max_pool(conv(width, 7, 2, name="stem_conv")(x), 3, 2, padding=1)
    require(
        width >= 2,
        "stem_width",
        width,
        "2 or more with stem='deep', whose first convolutions have half as many filters",
    )
    x = nn.relu(norm(name="stem_norm1")(conv(width // 2, 3, 2, name="stem_conv1")(x)))
    x = nn.relu(norm(name="stem_norm2")(conv(width // 2, 3, name="stem_conv2")(x)))
    return max_pool(conv(width, 3, name="stem_conv")(x), 3, 2, padding=1)


def preact_stages(depth: int) -> tuple[int, int, int]:
    """Blocks per stage of a CIFAR bottleneck network, 9n + 2 layers; ValueError for another depth.

    >>> preact_stages(164)
    (18, 18, 18)
    """
    return _thirds(depth, 9, 2, "a pre-activated CIFAR ResNet has 9n + 2 layers (164, 1001, ...)")


def wide_stages(depth: int) -> tuple[int, int, int]:
    """Blocks of each stage of WRN-d-k, 6n + 4 layers; raises ValueError for any other depth.

    >>> from deepjax.models import create_model
    >>> create_model("cifar_wrn28_10", stages=wide_stages(34), width=16 * 6).stages  # WRN-34-6
    (5, 5, 5)
    """
    return _thirds(depth, 6, 4, "a CIFAR Wide ResNet has 6n + 4 layers (16, 22, 28, 40, ...)")


def _thirds(depth: int, layers: int, rest: int, rule: str) -> tuple[int, int, int]:
    if depth < layers + rest or (depth - rest) % layers:
        raise ValueError(f"depth is {depth}; {rule}")
    blocks = (depth - rest) // layers
    return blocks, blocks, blocks
