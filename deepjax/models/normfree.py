"""Residual networks without normalisation: Fixup, SkipInit, NF-ResNet; and ReZero, whose scalar stands beside batch norm.

| scheme   | block; F is the residual branch              | what starts at zero        | source                                    |
|----------|----------------------------------------------|----------------------------|-------------------------------------------|
| fixup    | relu(x + scale F(x) + bias), post-activation | last conv of F, classifier | Zhang et al. 2019, arXiv:1901.09321       |
| skipinit | x + alpha F(relu(x)), pre-activation         | alpha, classifier          | De and Smith 2020, arXiv:2002.10444       |
| rezero   | x + alpha relu(F(x)), ReLU before the sum    | alpha                      | Bachlechner et al. 2020, arXiv:2003.04887 |
| nf       | x + 0.2 F(relu(x) / std), pre-activation     | gain of F's last conv      | Brock et al. 2021, arXiv:2101.08692       |

Where released codes say more than the papers, they are followed: hongyi-zhang/Fixup, google-deepmind/deepmind-research (nfnets;
SkipInit and NF), tbachlechner/ReZero-examples, and timm for the weights of NF-ResNet.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from deepjax.errors import require
from deepjax.models.layers.basic import (
    ModuleDef,
    Sum,
    broadcast_like,
    check_channels,
    check_fields,
    conv_factory,
    dense,
    shortcut_a,
    tag_stage,
)
from deepjax.models.layers.conv_lowering import convolve
from deepjax.models.layers.initializers import (
    Initialization,
    Initializer,
    gaussian,
    he_normal,
    he_normal_fan_out,
    torch_bias,
)
from deepjax.models.layers.input_checks import as_images, at_least_float32
from deepjax.models.layers.norms import Identity, Norm, Scope, norm_factory
from deepjax.models.layers.pooling import global_avg_pool, max_pool, shortcut_pool
from deepjax.models.layers.scanned_blocks import run_blocks
from deepjax.models.resnet import STAGES, Block

Stem = Literal["imagenet", "cifar"]
Shortcut = Literal["A", "B", "D"]
Layer = tuple[int, int, int]  # features, kernel, stride

# 1 / standard deviation of relu(z) for a standard Gaussian z: the released Monte-Carlo estimate, with which timm's weights were
# trained. The exact value is sqrt(2 / (1 - 1 / pi)) = 1.71285855.
GAMMA_RELU = 1.7139588594436646


def _scaled(init: Initializer, factor: float) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: (
        init(key, shape, dtype) * jnp.asarray(factor, dtype)
    )


INITIALIZATION = {
    "fixup": Initialization(he_normal_fan_out, nn.initializers.zeros),
    "skipinit": Initialization(he_normal, nn.initializers.zeros),
    "rezero": Initialization(he_normal, he_normal, torch_bias),
    "nf": Initialization(_scaled(he_normal, math.sqrt(0.5)), gaussian(0.01)),
}


class _Block(nn.Module):
    """The convolutions of a residual branch, its scale at the start, and the way around it."""

    layers: Sequence[Layer]
    stride: int
    initial: float
    shortcut: str
    conv: ModuleDef
    norm: ModuleDef
    param_dtype: DTypeLike

    def around(self, x: Array, source: Array) -> Array:
        """The input where the shape stays; else `source` padded with zeros (A), projected (B), or averaged and projected (D)."""
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


class FixupBlock(_Block):
    """relu(shortcut + scale * F(x) + bias), a learned scalar bias before and after each convolution, none of which has a bias.

    The last convolution starts at zero; the others, drawn as He et al. do, share the scale. A shortcut that changes shape takes
    x + bias1a.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scalar, last = partial(_scalar, self), len(self.layers)
        first = _scaled(he_normal_fan_out, self.initial ** (1 / (last - 1)))
        y = shifted = x + scalar(x, "bias1a")
        for i, layer in enumerate(self.layers[:-1], 1):
            y = self.conv(*layer, kernel_init=first, name=f"conv{i}")(y)
            y = nn.relu(y + scalar(y, f"bias{i}b")) + scalar(y, f"bias{i + 1}a")
        y = self.conv(*self.layers[-1], kernel_init=nn.initializers.zeros, name=f"conv{last}")(y)
        y = y * scalar(y, "scale", 1.0) + scalar(y, f"bias{last}b")
        return nn.relu(Sum(name="sum")(self.around(x, shifted), y))


class SkipInitBlock(_Block):
    """shortcut + alpha * F(relu(x)); a shortcut that changes the shape takes relu(x)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = active = nn.relu(x)
        for i, layer in enumerate(self.layers, 1):
            y = self.conv(*layer, name=f"conv{i}")(y if i == 1 else nn.relu(y))
        return Sum(name="sum")(self.around(x, active), _scalar(self, y, "alpha", self.initial) * y)


class ReZeroBlock(_Block):
    """shortcut + alpha * relu(F(x)): with the sum after the last ReLU, the signal along the shortcuts passes no ReLU at all."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x
        for i, layer in enumerate(self.layers, 1):
            y = nn.relu(self.norm(name=f"norm{i}")(self.conv(*layer, name=f"conv{i}")(y)))
        return Sum(name="sum")(self.around(x, x), _scalar(self, y, "alpha", self.initial) * y)


class NormFreeResNet(nn.Module):
    """The shapes of ResNet under "fixup", "skipinit" or "rezero", whose blocks start as their shortcuts.

    images: (batch, height, width, channels) floats -> float32 logits (batch, num_classes).
    fixup: with L blocks of m convolutions, the first m - 1 of a branch start scaled by L ** (-1 / (2 m - 2)).
    skipinit: every convolution of a block has a bias. `alpha` is the scalar's initial value, for rezero too.
    rezero: the authors' convolutional networks keep batch norm: norm="batch". With "none" the convolutions have biases instead.
    `shortcut` where the shape changes: "A" pads with zeros (fixup and rezero on CIFAR), "B" projects, "D" averages and projects.
    `scan`: the equal blocks of a stage run as one scanned block. Raises InputError for a choice that is not allowed.
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
                _maker(make, self.block, self.width * 2**stage), x, stage + 1, blocks, self.scan
            )
            x = tag_stage(self, f"stage{stage + 1}", x)
        x = global_avg_pool(nn.relu(x) if self.scheme == "skipinit" else x)
        if self.scheme == "fixup":
            x = x + _scalar(self, x, "head_bias")
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
            return _stem(x, self.stem, self.width, partial(conv, biased=False))
        if self.scheme == "rezero":
            return _stem(
                x, self.stem, self.width, conv, lambda x: nn.relu(norm(name="stem_norm")(x))
            )
        return _stem(
            x, self.stem, self.width, conv, lambda x: nn.relu(x + _scalar(self, x, "stem_bias"))
        )


class ScaledStdConv(nn.Module):
    """Convolution with a gain and a bias for each output channel, whose kernel is standardised whenever it is applied."""

    features: int
    kernel: int = 3
    stride: int = 1
    gamma: float = GAMMA_RELU
    gain_init: Initializer = nn.initializers.ones
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_channels(self, 1, x)
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", INITIALIZATION["nf"].conv, shape, self.param_dtype)
        gain = self.param("gain", self.gain_init, (self.features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        kernel = standardize(kernel, gain, self.gamma).astype(self.dtype)
        side = (self.kernel - 1) // 2
        y = convolve(
            x,
            kernel,
            (self.stride,) * 2,
            ((side, side),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + broadcast_like(bias, y)


def standardize(kernel: Array, gain: Array, gamma: float, epsilon: float = 1e-5) -> Array:
    """Kernel of zero mean and variance (gain * gamma)^2 / fan_in * v / (v + epsilon) for each output channel; v: its own variance.

    Brock et al. 2021, eq. 4, with timm's epsilon. kernel: (rows, columns, in, out), gain: (out,) -> the
    kernel's shape, in at least float32.
    """
    wide = at_least_float32(kernel.dtype)
    kernel, fan_in = kernel.astype(wide), math.prod(kernel.shape[:-1])
    centred = kernel - jnp.mean(kernel, (0, 1, 2), keepdims=True)
    var = jnp.mean(jnp.square(centred), (0, 1, 2))
    scale = lax.rsqrt(var + epsilon) * gain.astype(wide) * (gamma / math.sqrt(fan_in))
    return centred * scale.reshape(1, 1, 1, -1)


def expected_variances(stages: Sequence[int], alpha: float) -> list[list[float]]:
    """Predicted variance of each block's input, stage by stage: a stage's first block resets it to 1, each block adds alpha^2."""
    ends = [1.0] + [1.0 + blocks * alpha**2 for blocks in stages[:-1]]
    return [
        [start] + [1.0 + n * alpha**2 for n in range(1, blocks)]
        for start, blocks in zip(ends, stages, strict=True)
    ]


class NFBlock(_Block):
    """shortcut + alpha * F(beta * relu(x)); a shortcut that changes the shape takes beta * relu(x)."""

    zero_init: bool

    @nn.compact
    def __call__(self, x: Array, beta: Array) -> Array:
        y = active = nn.relu(x) * beta
        for i, layer in enumerate(self.layers, 1):
            gain = (
                nn.initializers.zeros
                if self.zero_init and i == len(self.layers)
                else nn.initializers.ones
            )
            y = self.conv(*layer, gain_init=gain, name=f"conv{i}")(y if i == 1 else nn.relu(y))
        return Sum(name="sum")(self.around(x, active), self.initial * y)


class NFResNet(nn.Module):
    """NF-ResNet of Brock et al. 2021: standardised kernels, and each block's input divided by its predicted standard deviation.

    images: (batch, height, width, channels) floats -> float32 logits (batch, num_classes). By default timm's `nf_resnet50`, which
    folds gamma into every kernel, the stem's too. The CIFAR stem has none, as in the released code: its input passed no ReLU.
    `shortcut` where the shape changes: "D" averages and projects (timm), "B" projects (the released code); the prediction holds for
    "B" after a CIFAR stem, as averages and maxima change the variance. `scan`: as in NormFreeResNet.
    `zero_init`: the gain of each branch's last convolution starts at zero, as in timm; the released code has a scalar in its place.
    Raises InputError for a choice that is not allowed.
    """

    stages: tuple[int, ...] = STAGES[50]
    block: Block = "bottleneck"
    num_classes: int = 1000
    width: int = 64
    stem: Stem = "imagenet"
    shortcut: Shortcut = "D"
    alpha: float = 0.2
    zero_init: bool = True
    scan: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_fields(self)
        conv = partial(ScaledStdConv, dtype=self.dtype, param_dtype=self.param_dtype)
        stem = partial(conv, gamma=GAMMA_RELU if self.stem == "imagenet" else 1.0)
        x = tag_stage(
            self, "stem", _stem(as_images(images, self.dtype), self.stem, self.width, stem)
        )
        fields = {
            "shortcut": self.shortcut,
            "conv": conv,
            "norm": Identity,
            "param_dtype": self.param_dtype,
        }
        make = partial(NFBlock, initial=self.alpha, zero_init=self.zero_init, **fields)
        for stage, variances in enumerate(expected_variances(self.stages, self.alpha)):
            betas = jnp.asarray([variance**-0.5 for variance in variances], self.dtype)
            x = _run_nf_blocks(
                _maker(make, self.block, self.width * 2**stage), x, stage + 1, betas, self.scan
            )
            x = tag_stage(self, f"stage{stage + 1}", x)
        x, wide = global_avg_pool(nn.relu(x)), at_least_float32(self.dtype)
        return dense(
            self.num_classes, x.shape[-1], INITIALIZATION["nf"], wide, self.param_dtype, "head"
        )(x)


def _run_nf_blocks(
    make: Callable[[int, str], Any], x: Array, stage: int, betas: Array, scan: bool
) -> Array:
    """`run_blocks` for blocks that differ in one number. betas: (blocks,)."""
    x = make(2 if stage > 1 else 1, f"stage{stage}_block1")(x, betas[0])
    if scan and len(betas) > 1:
        run = nn.scan(
            lambda block, x, beta: (block(x, beta), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return run(make(1, f"stage{stage}_blocks"), x, betas[1:])[0]
    for i in range(1, len(betas)):
        x = make(1, f"stage{stage}_block{i + 1}")(x, betas[i])
    return x


def _maker(make: ModuleDef, block: Block, planes: int) -> Callable[[int, str], Any]:
    return lambda stride, name: make(
        layers=_branch(block, planes, stride), stride=stride, name=name
    )


def _branch(block: Block, planes: int, stride: int) -> tuple[Layer, ...]:
    """The convolutions of a residual branch; the 3x3 of a bottleneck strides."""
    if block == "basic":
        return (planes, 3, stride), (planes, 3, 1)
    return (planes, 1, 1), (planes, 3, stride), (4 * planes, 1, 1)


def _stem(
    x: Array, kind: Stem, width: int, conv: ModuleDef, after: Callable[[Array], Array] = lambda x: x
) -> Array:
    if kind == "cifar":
        return after(conv(width, 3, name="stem_conv")(x))
    return max_pool(after(conv(width, 7, 2, name="stem_conv")(x)), 3, 2, padding=1)


def _scalar(module: Any, x: Array, name: str, value: float = 0.0) -> Array:
    """A learned scalar of the module, in the shape and dtype of the map that it meets."""
    return broadcast_like(
        module.param(name, nn.initializers.constant(value), (), module.param_dtype), x
    )
