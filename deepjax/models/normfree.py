"""Residual networks without normalisation: Fixup, SkipInit, and ReZero, which may keep batch norm.

| scheme   | block; F is the residual branch              | zero at the start          | source |
|----------|----------------------------------------------|----------------------------|--------|
| fixup    | relu(x + scale F(x) + bias), post-activation | last conv of F, classifier | [1]    |
| skipinit | x + alpha F(relu(x)), pre-activation         | alpha, classifier          | [2]    |
| rezero   | x + alpha relu(F(x)), ReLU before the sum    | alpha                      | [3]    |

[1] Zhang et al. 2019, arXiv:1901.09321. [2] De and Smith 2020, arXiv:2002.10444. [3] Bachlechner et
al. 2020, arXiv:2003.04887. Where the released code says more than the paper it is followed:
hongyi-zhang/Fixup, google-deepmind/deepmind-research (SkipInit), tbachlechner/ReZero-examples.
`nf_resnet` has the fourth scheme, with standardised kernels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.errors import require
from deepjax.models.layers.basic import (
    ModuleDef,
    Sum,
    broadcast_like,
    check_fields,
    conv_factory,
    dense,
    shortcut_a,
    tag_feature,
    tag_stage,
)
from deepjax.models.layers.initializers import (
    Initialization,
    Initializer,
    he_normal,
    he_normal_fan_out,
    torch_bias,
)
from deepjax.models.layers.input_checks import as_images, at_least_float32
from deepjax.models.layers.norms import Norm, Scope, norm_factory
from deepjax.models.layers.pooling import global_avg_pool, max_pool, shortcut_pool
from deepjax.models.layers.scanned_blocks import run_blocks
from deepjax.models.resnet import STAGES, Block

Stem = Literal["imagenet", "cifar"]
Shortcut = Literal["A", "B", "D"]
Layer = tuple[int, int, int]  # features, kernel, stride


def scaled_init(init: Initializer, factor: float) -> Initializer:
    """An initializer whose weights are multiplied by a factor."""
    return lambda key, shape, dtype=jnp.float32: (
        init(key, shape, dtype) * jnp.asarray(factor, dtype)
    )


INITIALIZATION = {
    "fixup": Initialization(he_normal_fan_out, nn.initializers.zeros),
    "skipinit": Initialization(he_normal, nn.initializers.zeros),
    "rezero": Initialization(he_normal, he_normal, torch_bias),
}


class NormFreeBlock(nn.Module):
    """Base of the blocks: the branch's convolutions, its initial scale, and the shortcut."""

    layers: Sequence[Layer]
    stride: int
    initial: float
    shortcut: str
    conv: ModuleDef
    norm: ModuleDef
    param_dtype: DTypeLike

    def around(self, x: Array, source: Array) -> Array:
        """The shortcut: identity, zero padding (A), projection (B), or average and projection (D).

        `source` is what is padded or projected where the shape changes.
        """
        out, stride = self.layers[-1][0], self.stride
        if stride == 1 and x.shape[-1] == out:
            return x
        if self.shortcut == "A":
            return shortcut_a(source, out, stride)
        if self.shortcut == "D":
            source, stride = shortcut_pool(source, stride), 1
        return self.norm(name="shortcut_norm")(
            self.conv(out, 1, stride, name="shortcut_conv")(source)
        )


class FixupBlock(NormFreeBlock):
    """relu(shortcut + scale * F(x) + bias), with a scalar bias before and after each convolution.

    The convolutions have no biases. The last one starts at zero; the others, He-initialised, share
    the scale. A shortcut that changes the shape takes x + bias1a.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scalar, last = partial(_scalar, self), len(self.layers)
        first = scaled_init(he_normal_fan_out, self.initial ** (1 / (last - 1)))
        y = shifted = x + scalar(x, "bias1a")
        for i, layer in enumerate(self.layers[:-1], 1):
            y = self.conv(*layer, kernel_init=first, name=f"conv{i}")(y)
            y = nn.relu(y + scalar(y, f"bias{i}b")) + scalar(y, f"bias{i + 1}a")
        y = self.conv(*self.layers[-1], kernel_init=nn.initializers.zeros, name=f"conv{last}")(y)
        y = y * scalar(y, "scale", 1.0) + scalar(y, f"bias{last}b")
        return nn.relu(Sum(name="sum")(self.around(x, shifted), y))


class SkipInitBlock(NormFreeBlock):
    """shortcut + alpha * F(relu(x)); a shortcut that changes the shape takes relu(x)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = active = nn.relu(x)
        for i, layer in enumerate(self.layers, 1):
            y = self.conv(*layer, name=f"conv{i}")(y if i == 1 else nn.relu(y))
        return Sum(name="sum")(self.around(x, active), _scalar(self, y, "alpha", self.initial) * y)


class ReZeroBlock(NormFreeBlock):
    """shortcut + alpha * relu(F(x)): the last ReLU is in the branch, none on the shortcut path."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x
        for i, layer in enumerate(self.layers, 1):
            y = nn.relu(self.norm(name=f"norm{i}")(self.conv(*layer, name=f"conv{i}")(y)))
        return Sum(name="sum")(self.around(x, x), _scalar(self, y, "alpha", self.initial) * y)


class NormFreeResNet(nn.Module):
    """ResNet's shapes under "fixup", "skipinit" or "rezero"; blocks start as their shortcuts.

    images: (batch, height, width, channels) floats -> float32 logits (batch, num_classes). fixup:
    with L blocks of m convolutions, the first m - 1 of a branch start scaled by L ** (-1 / (2 m -
    2)). skipinit: every convolution of a block has a bias. `alpha` is the scalar's initial value,
    also for rezero. rezero: the authors' convolutional networks keep batch norm: norm="batch". With
    "none" the convolutions have biases instead. `shortcut` where the shape changes: "A" pads with
    zeros (fixup and rezero on CIFAR), "B" projects, "D" averages and projects. `scan`: the equal
    blocks of a stage run as one scanned block. Raises InputError for a field's invalid value.
    """

    stages: tuple[int, ...] = STAGES[50]
    block: Block = "bottleneck"
    num_classes: int = 1000
    width: int = 64
    stem: Stem = "imagenet"
    scheme: Literal["fixup", "skipinit", "rezero"] = "fixup"
    shortcut: Shortcut = "B"
    alpha: float = 0.0
    norm: Norm = "none"
    bn_scope: Scope = "global"
    scan: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_fields(self)
        require(
            self.norm == "none" or self.scheme == "rezero",
            "norm",
            self.norm,
            f"'none' under scheme {self.scheme!r}",
        )
        init = INITIALIZATION[self.scheme]
        conv = conv_factory(
            init.conv,
            self.dtype,
            self.param_dtype,
            use_bias=self.scheme != "fixup" and self.norm == "none",
        )
        norm = norm_factory(self.norm, train, self.bn_scope, self.dtype, self.param_dtype)
        x = tag_stage(self, "stem", self._stem(as_images(images, self.dtype), conv, norm))
        fields = {
            "shortcut": self.shortcut,
            "conv": conv,
            "norm": norm,
            "param_dtype": self.param_dtype,
        }
        block = {"fixup": FixupBlock, "skipinit": SkipInitBlock, "rezero": ReZeroBlock}[self.scheme]
        make = partial(
            block,
            initial=sum(self.stages) ** -0.5 if self.scheme == "fixup" else self.alpha,
            **fields,
        )
        for stage, blocks in enumerate(self.stages):
            x = run_blocks(
                block_factory(make, self.block, self.width * 2**stage),
                x,
                stage + 1,
                blocks,
                self.scan,
            )
            x = tag_stage(self, f"stage{stage + 1}", x)
        x = global_avg_pool(nn.relu(x) if self.scheme == "skipinit" else x)
        if self.scheme == "fixup":
            x = x + _scalar(self, x, "head_bias")
        x = tag_feature(self, "pooled", x)
        return dense(
            self.num_classes,
            x.shape[-1],
            init,
            at_least_float32(self.dtype),
            self.param_dtype,
            "head",
        )(x)

    def _stem(self, x: Array, conv: ModuleDef, norm: ModuleDef) -> Array:
        if self.scheme == "skipinit":  # the first block begins with the ReLU
            return apply_stem(x, self.stem, self.width, partial(conv, biased=False))
        if self.scheme == "rezero":
            return apply_stem(
                x, self.stem, self.width, conv, lambda x: nn.relu(norm(name="stem_norm")(x))
            )
        return apply_stem(
            x, self.stem, self.width, conv, lambda x: nn.relu(x + _scalar(self, x, "stem_bias"))
        )


def block_factory(make: ModuleDef, block: Block, planes: int) -> Callable[[int, str], Any]:
    """(stride, name) -> a block with the layers of its branch."""
    return lambda stride, name: make(
        layers=_branch(block, planes, stride), stride=stride, name=name
    )


def _branch(block: Block, planes: int, stride: int) -> tuple[Layer, ...]:
    """The convolutions of a residual branch; the 3x3 of a bottleneck strides."""
    if block == "basic":
        return (planes, 3, stride), (planes, 3, 1)
    return (planes, 1, 1), (planes, 3, stride), (4 * planes, 1, 1)


def apply_stem(
    x: Array, kind: Stem, width: int, conv: ModuleDef, after: Callable[[Array], Array] = lambda x: x
) -> Array:
    """The stem: a 3x3 convolution for CIFAR, or the stem of ImageNet networks."""
    if kind == "cifar":
        return after(conv(width, 3, name="stem_conv")(x))
    return max_pool(after(conv(width, 7, 2, name="stem_conv")(x)), 3, 2, padding=1)


def _scalar(module: Any, x: Array, name: str, value: float = 0.0) -> Array:
    """A learned scalar of the module, broadcast to the shape and dtype of x."""
    return broadcast_like(
        module.param(name, nn.initializers.constant(value), (), module.param_dtype), x
    )
