"""Residual networks (He et al. 2015, arXiv:1512.03385), their plain twins, and later variants.

ImageNet (Table 1):

| stage  | map | 18, 34          | 50, 101, 152                   |
|--------|-----|-----------------|--------------------------------|
| stem   | 112 | 7x7, 64, stride 2; 3x3 max pool, stride 2        |
| stage1 | 56  | [3x3, 64; 3x3]  | [1x1, 64; 3x3, 64; 1x1, 256]   |
| stage2 | 28  | [3x3, 128; 3x3] | [1x1, 128; 3x3, 128; 1x1, 512] |
| stage3 | 14  | [3x3, 256; 3x3] | [1x1, 256; 3x3, 256; 1x1, 1024]|
| stage4 | 7   | [3x3, 512; 3x3] | [1x1, 512; 3x3, 512; 1x1, 2048]|
| head   | 1   | average pool, linear                             |

CIFAR (section 4.2): a 3x3 stem of 16 filters; stages of n blocks [3x3; 3x3] with 16 filters on maps
of 32, 32 filters on 16 and 64 filters on 8; average pool, linear.

Wide ResNet (arXiv:1605.07146) widens the 3x3 of a bottleneck, ResNeXt (arXiv:1611.05431) also
groups it, and ResNet-D (arXiv:1812.01187) has a stem of three 3x3 and pools before a projection.
"""

import math
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.errors import require
from deepjax.models.layers.basic import (
    ModuleDef,
    Padding,
    Sum,
    check_fields,
    conv_factory,
    dense,
    relu_of_sum,
    shortcut_a,
    tag_feature,
    tag_stage,
)
from deepjax.models.layers.initializers import (
    Initialization,
    he_normal_fan_out,
    torch_bias,
    torch_linear,
)
from deepjax.models.layers.input_checks import as_images, at_least_float32
from deepjax.models.layers.norms import Norm, Scope, norm_factory
from deepjax.models.layers.pooling import global_avg_pool, max_pool, max_pool_same, shortcut_pool
from deepjax.models.layers.scanned_blocks import run_blocks

# Blocks of each stage: Table 1; 200 is of He et al. 2016 (arXiv:1603.05027, Table 5).
STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}

INITIALIZATION = {
    "paper": Initialization(),  # section 3.4 cites He et al. 2015b
    "torchvision": Initialization(he_normal_fan_out, torch_linear, torch_bias),
}

Shortcut = Literal["A", "B", "C", "D"]
Stem = Literal["imagenet", "deep", "cifar"]
StrideIn = Literal["1x1", "3x3"]
Block = Literal["basic", "bottleneck"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (basic) or 1x1, 3x3, 1x1 (bottleneck), a shortcut, ReLU after the sum.

    Shortcuts where the shape changes: A pads with zeros, B projects, D averages and projects; C
    projects everywhere.
    """

    block: Block
    channels: int  # filters of the first convolution times the groups' widening
    out: int
    stride: int
    residual: bool
    shortcut: Shortcut
    stride_in: StrideIn
    groups: int
    zero_init: bool
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: Array) -> Array:
        last = (
            self.norm
            if not self.zero_init
            else lambda **named: self.norm(scale_init=nn.initializers.zeros, **named)
        )
        if self.block == "basic":
            y = self.conv(self.channels, 3, self.stride, groups=self.groups, name="conv1")(x)
            y = nn.relu(self.norm(name="norm1")(y))
            y = last(name="norm2")(self.conv(self.out, 3, groups=self.groups, name="conv2")(y))
        else:
            first, second = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
            y = nn.relu(
                self.norm(name="norm1")(self.conv(self.channels, 1, first, name="conv1")(x))
            )
            y = nn.relu(
                self.norm(name="norm2")(
                    self.conv(self.channels, 3, second, groups=self.groups, name="conv2")(y)
                )
            )
            y = last(name="norm3")(self.conv(self.out, 1, name="conv3")(y))
        return relu_of_sum(Sum(name="sum")(self._shortcut(x), y)) if self.residual else nn.relu(y)

    def _shortcut(self, x: Array) -> Array:
        changes = self.stride > 1 or x.shape[-1] != self.out
        if self.shortcut == "A" and changes:
            return shortcut_a(x, self.out, self.stride)
        if self.shortcut == "C" or changes:
            pooled, stride = (
                (shortcut_pool(x, self.stride), 1) if self.shortcut == "D" else (x, self.stride)
            )
            return self.norm(name="shortcut_norm")(
                self.conv(self.out, 1, stride, name="shortcut_conv")(pooled)
            )
        return x


class ResNet(nn.Module):
    """Stem, stages of equal blocks, average pool, linear. residual=False: the plain twin.

    images: (batch, height, width, channels) floats of any size and number of channels -> float32
    logits (batch, num_classes). The plain twin has the same shapes and no shortcuts. `width`:
    filters of the first stage, doubled by each later one. A bottleneck's 3x3 has `groups` groups
    and width * group_width / 64 filters in each; its output has four times the stage's width.
    `stride_in`: which convolution of a bottleneck strides: "1x1" as in the paper (v1), "3x3" as in
    torchvision (v1.5). `strided_padding`: of 3x3 windows with a stride; "SAME" is that of flax's
    example (docs/flax_resnet.md). `zero_init`: the last scale of each block starts at zero (Goyal
    et al. 2017, arXiv:1706.02677, 5.1). `scan`: the equal blocks of a stage run as one block;
    `deepjax.models.stack_blocks` stacks their parameters. With norm="none" the convolutions have
    biases. Raises InputError for a field's invalid value.
    """

    stages: tuple[int, ...] = STAGES[50]
    block: Block = "bottleneck"
    num_classes: int = 1000
    width: int = 64
    groups: int = 1
    group_width: int = 64
    stem: Stem = "imagenet"
    residual: bool = True
    shortcut: Shortcut = "B"
    stride_in: StrideIn = "3x3"
    norm: Norm = "batch"
    bn_scope: Scope = "global"
    zero_init: bool = False
    strided_padding: Padding = "symmetric"
    initialization: Literal["paper", "torchvision"] = "paper"
    scan: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_fields(self)
        _check_groups(self)
        init = INITIALIZATION[self.initialization]
        conv = conv_factory(
            init.conv,
            self.dtype,
            self.param_dtype,
            use_bias=self.norm == "none",
            strided_3x3=self.strided_padding,
        )
        norm = norm_factory(self.norm, train, self.bn_scope, self.dtype, self.param_dtype)
        same = self.strided_padding == "SAME"
        x = stem(as_images(images, self.dtype), self.stem, self.width, conv, norm, same)
        x = tag_stage(self, "stem", x)
        for stage, blocks in enumerate(self.stages):
            planes = self.width * 2**stage

            def block(stride: int, name: str, planes: int = planes) -> ResidualBlock:
                bottleneck = self.block == "bottleneck"
                return ResidualBlock(
                    block=self.block,
                    channels=planes * self.group_width // 64 * self.groups
                    if bottleneck
                    else planes,
                    out=4 * planes if bottleneck else planes,
                    stride=stride,
                    residual=self.residual,
                    shortcut=self.shortcut,
                    stride_in=self.stride_in,
                    groups=self.groups,
                    zero_init=self.zero_init,
                    conv=conv,
                    norm=norm,
                    name=name,
                )

            x = run_blocks(block, x, stage + 1, blocks, self.scan)
            x = tag_stage(self, f"stage{stage + 1}", x)
        x = global_avg_pool(x)
        x = tag_feature(self, "pooled", x)
        return dense(
            self.num_classes,
            x.shape[-1],
            init,
            at_least_float32(self.dtype),
            self.param_dtype,
            "head",
        )(x)


def _check_groups(model: ResNet) -> None:
    """Raise InputError where groups of a block's 3x3 would have fractional numbers of filters."""
    if model.block == "basic":
        require(
            model.width % model.groups == 0,
            "width",
            model.width,
            f"a multiple of groups={model.groups} in a basic block",
        )
        return
    product = model.width * model.group_width
    multiple = 64 // math.gcd(64, model.group_width)
    rule = f"with group_width={model.group_width} a multiple of {multiple}"
    require(
        product % 64 == 0,
        "width",
        model.width,
        f"{rule}: a group has width * group_width / 64 filters",
    )


def stem(
    x: Array, kind: Stem, width: int, conv: ModuleDef, norm: ModuleDef, same: bool = False
) -> Array:
    """The stem: 7x7 and pool, three 3x3 and pool (ResNet-D), or one 3x3 (CIFAR).

    same: the pool pads as "SAME", on the lower and right side of a map of even size.
    """
    if kind == "cifar":
        return nn.relu(norm(name="stem_norm")(conv(width, 3, name="stem_conv")(x)))
    if kind == "imagenet":
        x = conv(width, 7, 2, name="stem_conv")(x)
    else:
        require(
            width >= 2,
            "width",
            width,
            "2 or more with stem='deep', whose first convolutions have half as many filters",
        )
        x = nn.relu(norm(name="stem_norm1")(conv(width // 2, 3, 2, name="stem_conv1")(x)))
        x = nn.relu(norm(name="stem_norm2")(conv(width // 2, 3, name="stem_conv2")(x)))
        x = conv(width, 3, name="stem_conv")(x)
    # ReLU after the pool is bitwise identical, gradients too, on a quarter of the pixels.
    x = norm(name="stem_norm")(x)
    return nn.relu(max_pool_same(x, 3, 2) if same else max_pool(x, 3, 2, padding=1))


def cifar_stages(depth: int) -> tuple[int, int, int]:
    """Blocks of each stage of the 6n + 2 layers; raises ValueError for any other depth.

    >>> cifar_stages(20)
    (3, 3, 3)
    """
    if depth < 8 or (depth - 2) % 6:
        nearest = max(8, round((depth - 2) / 6) * 6 + 2)
        raise ValueError(
            f"depth is {depth}; a CIFAR ResNet has 6n + 2 layers (8, 14, 20, ...), the nearest is "
            f"{nearest}"
        )
    blocks = (depth - 2) // 6
    return blocks, blocks, blocks
