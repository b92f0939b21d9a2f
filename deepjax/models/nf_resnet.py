"""NF-ResNet (Brock et al. 2021, arXiv:2101.08692): residual networks with standardised kernels.

A block is x + 0.2 F(beta relu(x)), pre-activation, where 1 / beta is the predicted standard
deviation of its input. The gain of F's last convolution starts at zero. Where the released code
(google-deepmind/deepmind-research, nfnets) says more than the paper it is followed, and timm for
its weights.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from deepjax.models.layers.basic import (
    Sum,
    broadcast_like,
    check_channels,
    check_fields,
    dense,
    tag_feature,
    tag_stage,
)
from deepjax.models.layers.conv_lowering import convolve
from deepjax.models.layers.initializers import Initialization, Initializer, gaussian, he_normal
from deepjax.models.layers.input_checks import as_images, at_least_float32
from deepjax.models.layers.norms import Identity
from deepjax.models.layers.pooling import global_avg_pool
from deepjax.models.normfree import (
    NormFreeBlock,
    Shortcut,
    Stem,
    apply_stem,
    block_factory,
    scaled_init,
)
from deepjax.models.resnet import STAGES, Block

# 1 / std of relu(z) for a standard Gaussian z: the Monte-Carlo estimate of the released code, with
# which timm's weights were trained. The exact value is sqrt(2 / (1 - 1 / pi)) = 1.71285855.
GAMMA_RELU = 1.7139588594436646

INITIALIZATION = Initialization(scaled_init(he_normal, math.sqrt(0.5)), gaussian(0.01))


class ScaledStdConv(nn.Module):
    """Convolution with a gain and a bias per output channel and a standardised kernel."""

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
        kernel = self.param("kernel", INITIALIZATION.conv, shape, self.param_dtype)
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
    """Kernel of zero mean and variance (gain * gamma)^2 / fan_in per output channel.

    Brock et al. 2021, eq. 4, with timm's epsilon, so that the variance is smaller by v / (v +
    epsilon), with v the kernel's own. kernel: (rows, columns, in, out), gain: (out,) -> the
    kernel's shape, in at least float32.
    """
    wide = at_least_float32(kernel.dtype)
    kernel, fan_in = kernel.astype(wide), math.prod(kernel.shape[:-1])
    centred = kernel - jnp.mean(kernel, (0, 1, 2), keepdims=True)
    var = jnp.mean(jnp.square(centred), (0, 1, 2))
    scale = lax.rsqrt(var + epsilon) * gain.astype(wide) * (gamma / math.sqrt(fan_in))
    return centred * scale.reshape(1, 1, 1, -1)


def expected_variances(stages: Sequence[int], alpha: float) -> list[list[float]]:
    """Predicted variance of each block's input, by stage: each block adds alpha^2 to it.

    A stage's first block resets it to 1.
    """
    ends = [1.0] + [1.0 + blocks * alpha**2 for blocks in stages[:-1]]
    return [
        [start] + [1.0 + n * alpha**2 for n in range(1, blocks)]
        for start, blocks in zip(ends, stages, strict=True)
    ]


class NFBlock(NormFreeBlock):
    """shortcut + alpha * F(beta * relu(x)); a projection takes beta * relu(x) too."""

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
    """NF-ResNet: each block's input is divided by its predicted standard deviation.

    images: (batch, height, width, channels) floats -> float32 logits (batch, num_classes). The
    default is timm's `nf_resnet50`, which folds gamma into every kernel, the stem's too. The CIFAR
    stem has none, as in the released code: its input passed no ReLU. `shortcut` where the shape
    changes: "D" averages and projects (timm), "B" projects (released code); the prediction holds
    for "B" after a CIFAR stem, as averages and maxima change the variance. `zero_init`: the gain of
    each branch's last convolution starts at zero, as in timm; the released code has a scalar
    instead. `scan`: as in NormFreeResNet. Raises InputError for a field's invalid value.
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
            self, "stem", apply_stem(as_images(images, self.dtype), self.stem, self.width, stem)
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
                block_factory(make, self.block, self.width * 2**stage),
                x,
                stage + 1,
                betas,
                self.scan,
            )
            x = tag_stage(self, f"stage{stage + 1}", x)
        x = tag_feature(self, "pooled", global_avg_pool(nn.relu(x)))
        wide = at_least_float32(self.dtype)
        return dense(self.num_classes, x.shape[-1], INITIALIZATION, wide, self.param_dtype, "head")(
            x
        )


def _run_nf_blocks(
    make: Callable[[int, str], Any], x: Array, stage: int, betas: Array, scan: bool
) -> Array:
    """`run_blocks` for blocks with a different beta each. betas: (blocks,)."""
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
