"""Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) in torchvision's layout, for its weights.

At 299 pixels: five convolutions and two pools (stem), three modules at 35x35 (Figure 5), a
reduction, four at 17x17 whose 7x7 are factorised into 1x7 and 7x1 (Figure 6), a reduction, two at
8x8 with branches that fan out (Figure 7), average pool, linear.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.errors import InputError
from deepjax.models.googlenet import Unit, auxiliary_wanted, conv_unit, sow_auxiliary
from deepjax.models.layers.basic import check_fields, conv_factory, dense, tag_feature, tag_stage
from deepjax.models.layers.initializers import (
    Initialization,
    Initializer,
    gaussian,
    he_normal,
    torch_bias,
)
from deepjax.models.layers.input_checks import as_images, at_least_float32
from deepjax.models.layers.norms import Norm, Scope, norm_factory
from deepjax.models.layers.pooling import avg_pool, global_avg_pool, max_pool

SMALLEST = 75  # pixels of an image whose last map is one pixel
# Side of the map that the auxiliary head needs: 5 after its pool. An image of 299 pixels has it.
AUXILIARY_MAP = 17


class ConvUnit(NamedTuple):
    """A convolution of a branch; `padding=0` shrinks the map, None keeps it at stride 1."""

    kernel: int | tuple[int, int]
    features: int
    stride: int = 1
    padding: int | None = None


class Fan(NamedTuple):
    """Two convolutions of one input, concatenated."""

    a: ConvUnit
    b: ConvUnit


Step = ConvUnit | Fan | Literal["average pool", "max pool"]
Branches = dict[str, tuple[Step, ...]]

STEM: tuple[Step, ...] = (
    ConvUnit(3, 32, 2, 0), ConvUnit(3, 32, 1, 0), ConvUnit(3, 64), "max pool",
    ConvUnit(1, 80), ConvUnit(3, 192, 1, 0), "max pool",
)  # fmt: skip


def module_a(pooled: int) -> Branches:
    """Figure 5: 5x5 as in GoogLeNet, and 5x5 as two 3x3; `pooled` filters after the pool."""
    return {
        "branch1x1": (ConvUnit(1, 64),),
        "branch5x5": (ConvUnit(1, 48), ConvUnit(5, 64)),
        "branch3x3dbl": (ConvUnit(1, 64), ConvUnit(3, 96), ConvUnit(3, 96)),
        "branch_pool": ("average pool", ConvUnit(1, pooled)),
    }


def module_c(filters: int) -> Branches:
    """Figure 6: 7x7 once and twice, factorised, with `filters` inside."""
    wide, tall = ConvUnit((1, 7), filters), ConvUnit((7, 1), filters)
    return {
        "branch1x1": (ConvUnit(1, 192),),
        "branch7x7": (ConvUnit(1, filters), wide, ConvUnit((7, 1), 192)),
        "branch7x7dbl": (ConvUnit(1, filters), tall, wide, tall, ConvUnit((1, 7), 192)),
        "branch_pool": ("average pool", ConvUnit(1, 192)),
    }


MODULE_B: Branches = {  # 35x35 -> 17x17, Figure 10
    "branch3x3": (ConvUnit(3, 384, 2, 0),),
    "branch3x3dbl": (ConvUnit(1, 64), ConvUnit(3, 96), ConvUnit(3, 96, 2, 0)),
    "branch_pool": ("max pool",),
}
MODULE_D: Branches = {  # 17x17 -> 8x8
    "branch3x3": (ConvUnit(1, 192), ConvUnit(3, 320, 2, 0)),
    "branch7x7x3": (
        ConvUnit(1, 192),
        ConvUnit((1, 7), 192),
        ConvUnit((7, 1), 192),
        ConvUnit(3, 192, 2, 0),
    ),
    "branch_pool": ("max pool",),
}
MODULE_E: Branches = {  # Figure 7
    "branch1x1": (ConvUnit(1, 320),),
    "branch3x3": (ConvUnit(1, 384), Fan(ConvUnit((1, 3), 384), ConvUnit((3, 1), 384))),
    "branch3x3dbl": (
        ConvUnit(1, 448),
        ConvUnit(3, 384),
        Fan(ConvUnit((1, 3), 384), ConvUnit((3, 1), 384)),
    ),
    "branch_pool": ("average pool", ConvUnit(1, 192)),
}

TABLE: dict[str, Branches] = {
    "mixed5b": module_a(32),
    "mixed5c": module_a(64),
    "mixed5d": module_a(64),
    "mixed6a": MODULE_B,
    "mixed6b": module_c(128),
    "mixed6c": module_c(160),
    "mixed6d": module_c(160),
    "mixed6e": module_c(192),
    "mixed7a": MODULE_D,
    "mixed7b": MODULE_E,
    "mixed7c": MODULE_E,
}
AUXILIARY = "mixed6e"  # the module whose output feeds the auxiliary head


class _Initialization(NamedTuple):
    net: Initialization
    auxiliary_conv: Initializer  # the head's 5x5
    auxiliary: Initialization  # the head's linear layer


INITIALIZATION = {
    # the paper is silent, as on GoogLeNet
    "paper": _Initialization(Initialization(), he_normal, Initialization()),
    "torchvision": _Initialization(
        Initialization(gaussian(0.1), gaussian(0.1), torch_bias),
        gaussian(0.01),
        Initialization(dense=gaussian(0.001), dense_bias=torch_bias),
    ),
}


class Mixed(nn.Module):
    """A module: branches over one map, concatenated.

    x: (batch, height, width, c) -> (batch, height', width', filters).
    """

    branches: tuple[tuple[str, tuple[Step, ...]], ...]  # name and steps of each
    width: int
    unit: Unit

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.concatenate(
            [apply_units(x, steps, name, self.width, self.unit) for name, steps in self.branches],
            axis=-1,
        )


class InceptionV3AuxHead(nn.Module):
    """Auxiliary classifier (section 4): 5x5 average pool of stride 3, 1x1, 5x5, average, linear.

    x: (batch, height, width, c), at least 17 pixels high and wide -> float32 logits (batch,
    num_classes).
    """

    num_classes: int
    width: int
    initialization: _Initialization
    unit: Unit
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.unit(avg_pool(x, 5, 3), scaled(128, self.width), 1, "conv1")
        x = self.unit(
            x,
            scaled(768, self.width),
            5,
            "conv2",
            padding=0,
            kernel_init=self.initialization.auxiliary_conv,
        )
        x = global_avg_pool(x)
        return dense(
            self.num_classes,
            x.shape[-1],
            self.initialization.auxiliary,
            x.dtype,
            self.param_dtype,
            "logits",
        )(x)


class InceptionV3(nn.Module):
    """Stem, eleven modules, average pool, linear; an auxiliary head on the last module of 17x17.

    images: (batch, height, width, channels) floats, at least 75 pixels high and wide -> float32
    logits (batch, num_classes). The head's float32 logits are sown into the collection "auxiliary"
    as "6e", and computed only where it is mutable, which takes images of 299 pixels or more.
    `width`: filters of the first convolution; all others scale with it (at least one), the head's
    too. Dropout uses the rng "dropout" in training. With norm="none" the convolutions have biases.
    Raises InputError for images that are too small and for a field's invalid value.
    """

    num_classes: int = 1000
    width: int = 32
    norm: Norm = "batch"
    bn_scope: Scope = "global"
    auxiliary: bool = True
    dropout: float = 0.5
    initialization: Literal["paper", "torchvision"] = "paper"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_fields(self)
        x = as_images(images, self.dtype)
        if min(images.shape[1:3]) < SMALLEST:
            raise InputError(
                f"images are {images.shape[1]}x{images.shape[2]} pixels; Inception-v3 needs "
                f"{SMALLEST} or more a side"
            )
        init, wide = INITIALIZATION[self.initialization], at_least_float32(self.dtype)
        conv = conv_factory(
            init.net.conv, self.dtype, self.param_dtype, use_bias=self.norm == "none"
        )
        unit = conv_unit(
            conv,
            norm_factory(
                self.norm, train, self.bn_scope, self.dtype, self.param_dtype, epsilon=1e-3
            ),
        )
        x = tag_stage(self, "stem", apply_units(x, STEM, "stem", self.width, unit))
        for name, branches in TABLE.items():
            x = tag_stage(
                self, name, Mixed(tuple(branches.items()), self.width, unit, name=name)(x)
            )
            if name == AUXILIARY and self.auxiliary and auxiliary_wanted(self):
                head = InceptionV3AuxHead(
                    self.num_classes, self.width, init, unit, self.param_dtype, name="auxiliary6e"
                )
                sow_auxiliary(self, "6e", head(self._auxiliary_map(x, images.shape)))
        x = tag_feature(self, "pooled", global_avg_pool(x))
        x = nn.Dropout(self.dropout, deterministic=not train, name="head_dropout")(x)
        return dense(self.num_classes, x.shape[-1], init.net, wide, self.param_dtype, "head")(x)

    def _auxiliary_map(self, x: Array, shape: Sequence[int]) -> Array:
        """The map for the head, or zeros of its size while initialising from small images."""
        if self.is_initializing():
            return jnp.zeros((x.shape[0], AUXILIARY_MAP, AUXILIARY_MAP, x.shape[-1]), x.dtype)
        if min(x.shape[1:3]) < AUXILIARY_MAP:
            raise InputError(
                f"images are {shape[1]}x{shape[2]} pixels; the auxiliary head of Inception-v3 "
                "needs 299 or more a side: give larger images, set auxiliary=False, or do not "
                "collect 'auxiliary' (in training: auxiliary_weight=0)"
            )
        return x


def apply_units(x: Array, steps: Sequence[Step], name: str, width: int, unit: Unit) -> Array:
    """Apply the steps of a branch in turn; to be called in a compact module.

    Convolutions are named name_conv1, name_conv2, ...; a fan's name_conv2a and name_conv2b; a
    single one name_conv. x: (batch, height, width, c) -> (batch, height', width', filters).
    """
    lone = sum(not isinstance(step, str) for step in steps) == 1
    number = 0

    def convolve(x: Array, conv: ConvUnit, suffix: str) -> Array:
        return unit(
            x,
            scaled(conv.features, width),
            conv.kernel,
            f"{name}_conv{suffix}",
            stride=conv.stride,
            padding=conv.padding,
        )

    for step in steps:
        number += not isinstance(step, str)
        match step:
            case "max pool":
                x = max_pool(x, 3, 2)
            case "average pool":
                x = avg_pool(x, 3, 1, padding=1)
            case Fan(a, b):
                x = jnp.concatenate(
                    [convolve(x, a, f"{number}a"), convolve(x, b, f"{number}b")], axis=-1
                )
            case ConvUnit():
                x = convolve(x, step, "" if lone else str(number))
    return x


def scaled(filters: int, width: int) -> int:
    """Filters of a layer in a network whose first convolution has `width` filters, not 32."""
    return max(1, filters * width // 32)
