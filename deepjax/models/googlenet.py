"""GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842): the Inception module and Table 1.

    input         input           input         input
      |             |               |             |
      |        1x1 "reduce"    1x1 "reduce"  3x3 max pool, stride 1
      |             |               |             |
     1x1           3x3             5x5      1x1 "pool proj"
      +-------------+---------------+-------------+---- concatenation

The naive module (Figure 2a) has neither reductions nor projection: 3x3 and 5x5 see the full input,
and the pooled input is concatenated directly, so that each module has more channels than the last.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.models.layers.basic import (
    ModuleDef,
    check_fields,
    conv_factory,
    dense,
    tag_feature,
    tag_stage,
)
from deepjax.models.layers.initializers import Initialization, gaussian, torch_bias
from deepjax.models.layers.input_checks import as_images, at_least_float32
from deepjax.models.layers.norms import Norm, Scope, norm_factory
from deepjax.models.layers.pooling import (
    adaptive_avg_pool,
    avg_pool,
    global_avg_pool,
    local_response_norm,
    max_pool,
)

Unit = Callable[..., Array]


class Row(NamedTuple):
    """Filters of an Inception module, in the order of Table 1's columns."""

    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce5x5: int
    conv5x5: int
    project: int


# Table 1 from the first Inception module to the last; None is a max pool of stride 2.
TABLE: dict[str, Row | None] = {
    #                   1x1  3x3r 3x3  5x5r 5x5  proj
    "inception3a": Row(64, 96, 128, 16, 32, 32),
    "inception3b": Row(128, 128, 192, 32, 96, 64),
    "pool3": None,
    "inception4a": Row(192, 96, 208, 16, 48, 64),
    "inception4b": Row(160, 112, 224, 24, 64, 64),
    "inception4c": Row(128, 128, 256, 24, 64, 64),
    "inception4d": Row(112, 144, 288, 32, 64, 64),
    "inception4e": Row(256, 160, 320, 32, 128, 128),
    "pool4": None,
    "inception5a": Row(256, 160, 320, 32, 128, 128),
    "inception5b": Row(384, 192, 384, 48, 128, 128),
}
AUXILIARY = ("4a", "4d")  # section 5: the modules whose outputs feed an auxiliary head

INITIALIZATION = {
    # the paper is silent; He et al. 2015 (arXiv:1502.01852) is what its ReLUs ask for
    "paper": Initialization(),
    "torchvision": Initialization(gaussian(0.01), gaussian(0.01), torch_bias),
}


class Inception(nn.Module):
    """An Inception module: four branches over one map, concatenated. reduce=False: naive module.

    x: (batch, height, width, c) -> (batch, height, width, sum of the branches' filters; in the
    naive module c in place of the projection's).
    """

    row: Row
    largest_kernel: int
    reduce: bool
    unit: Unit

    @nn.compact
    def __call__(self, x: Array) -> Array:
        row, unit = self.row, self.unit
        pooled = max_pool(x, 3, 1, padding=1)
        branches = (
            unit(x, row.conv1x1, 1, "conv1x1"),
            unit(
                unit(x, row.reduce3x3, 1, "reduce3x3") if self.reduce else x,
                row.conv3x3,
                3,
                "conv3x3",
            ),
            unit(
                unit(x, row.reduce5x5, 1, "reduce5x5") if self.reduce else x,
                row.conv5x5,
                self.largest_kernel,
                "conv5x5",
            ),
            unit(pooled, row.project, 1, "project") if self.reduce else pooled,
        )
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier (section 5): pool to 4x4, 1x1 convolution, linear, dropout, linear.

    x: (batch, height, width, c) -> float32 logits (batch, num_classes). The kernel of "hidden" has
    a row per height, width and channel of the 4x4 map. `pool="5x5"` is the paper's window, of
    stride 3; maps that it does not turn into 4x4 are averaged over 4x4 regions. "adaptive" does
    that with all maps, as torchvision; at 14x14 the regions are 4x4 pixels, not 5x5.
    """

    num_classes: int
    filters: int
    units: int
    dropout: float
    pool: Literal["5x5", "adaptive"]
    initialization: Initialization
    unit: Unit
    train: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fits = all(14 <= side <= 16 for side in x.shape[1:3])
        x = avg_pool(x, 5, 3) if self.pool == "5x5" and fits else adaptive_avg_pool(x, 4)
        x = self.unit(x, self.filters, 1, "conv")
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(
            dense(
                self.units, x.shape[-1], self.initialization, self.dtype, self.param_dtype, "hidden"
            )(x)
        )
        x = nn.Dropout(self.dropout, deterministic=not self.train, name="dropout")(x)
        wide = at_least_float32(self.dtype)
        return dense(
            self.num_classes, self.units, self.initialization, wide, self.param_dtype, "logits"
        )(x)


class GoogLeNet(nn.Module):
    """Table 1, with auxiliary heads on 4a and 4d. Defaults: the paper; TORCHVISION: torchvision.

    images: (batch, height, width, channels) floats of any size and number of channels -> float32
    logits (batch, num_classes). The heads' float32 logits are sown into the collection "auxiliary"
    as "4a" and "4d", and computed only where it is mutable. `width`: filters of the first
    convolution; all others scale with it (at least one), the heads' too. `norm`: "none" is the
    paper's network, with biases and local response normalisation; the others have neither.
    `reduce=False`: naive modules, and no 1x1 before the stem's 3x3. `pool4`: window of the last
    pool. `largest_kernel`: "3x3" is torchvision's bug in the 5x5 branch (its issue 906).
    `auxiliary_pool`: see AuxiliaryHead. Dropout uses the rng "dropout" in training. Raises
    InputError for a field's invalid value.
    """

    num_classes: int = 1000
    width: int = 64
    norm: Norm = "none"
    bn_scope: Scope = "global"
    reduce: bool = True
    largest_kernel: Literal["5x5", "3x3"] = "5x5"
    pool4: Literal["3x3", "2x2"] = "3x3"
    auxiliary: bool = True
    auxiliary_pool: Literal["5x5", "adaptive"] = "5x5"
    auxiliary_dropout: float = 0.7
    dropout: float = 0.4
    initialization: Literal["paper", "torchvision"] = "paper"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_fields(self)
        init = INITIALIZATION[self.initialization]
        conv = conv_factory(init.conv, self.dtype, self.param_dtype, use_bias=self.norm == "none")
        unit = conv_unit(
            conv,
            norm_factory(
                self.norm, train, self.bn_scope, self.dtype, self.param_dtype, epsilon=1e-3
            ),
        )
        x = tag_stage(self, "stem", self._stem(as_images(images, self.dtype), unit))
        for name, row in TABLE.items():
            if row is None:
                x = _pool(x, int(self.pool4[0]) if name == "pool4" else 3)
                continue
            x = Inception(
                Row(*map(self._scaled, row)),
                int(self.largest_kernel[0]),
                self.reduce,
                unit,
                name=name,
            )(x)
            x = tag_stage(self, name, x)
            module = name.removeprefix("inception")
            if module in AUXILIARY and self.auxiliary and auxiliary_wanted(self):
                head = AuxiliaryHead(
                    num_classes=self.num_classes,
                    filters=self._scaled(128),
                    units=self._scaled(1024),
                    dropout=self.auxiliary_dropout,
                    pool=self.auxiliary_pool,
                    initialization=init,
                    unit=unit,
                    train=train,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"auxiliary{module}",
                )
                sow_auxiliary(self, module, head(x))
        x = tag_feature(self, "pooled", global_avg_pool(x))
        x = nn.Dropout(self.dropout, deterministic=not train, name="head_dropout")(x)
        return dense(
            self.num_classes,
            x.shape[-1],
            init,
            at_least_float32(self.dtype),
            self.param_dtype,
            "head",
        )(x)

    def _stem(self, x: Array, unit: Unit) -> Array:
        lrn = local_response_norm if self.norm == "none" else lambda x: x
        x = unit(x, self._scaled(64), 7, "stem_conv1", stride=2)
        x = lrn(_pool(x, 3))
        x = unit(x, self._scaled(64), 1, "stem_reduce2") if self.reduce else x
        x = unit(x, self._scaled(192), 3, "stem_conv2")
        return _pool(lrn(x), 3)

    def _scaled(self, filters: int) -> int:
        return max(1, filters * self.width // 64)


# What torchvision's googlenet changes in the paper's.
TORCHVISION = {
    "norm": "batch",
    "largest_kernel": "3x3",
    "pool4": "2x2",
    "auxiliary_pool": "adaptive",
    "dropout": 0.2,
    "initialization": "torchvision",
}


def conv_unit(conv: ModuleDef, norm: ModuleDef) -> Unit:
    """The function unit(x, features, kernel, name, **options): convolution, normalisation, ReLU.

    To be called in a compact module. The normalisation is named after the convolution: "norm" for
    "conv" (conv3x3, norm3x3), or with "_norm" appended (reduce3x3_norm).
    """

    def unit(
        x: Array, features: int, kernel: int | tuple[int, int], name: str, **options: object
    ) -> Array:
        norm_name = name.replace("conv", "norm") if "conv" in name else f"{name}_norm"
        return nn.relu(norm(name=norm_name)(conv(features, kernel, name=name, **options)(x)))

    return unit


def auxiliary_wanted(module: nn.Module) -> bool:
    """Whether auxiliary heads are computed: to collect their logits, or to initialise them."""
    return module.is_initializing() or module.is_mutable_collection("auxiliary")


def sow_auxiliary(module: nn.Module, name: str, logits: Any) -> None:
    """Put a head's logits into the collection "auxiliary"; nothing while initialising."""
    if not module.is_initializing():
        module.sow("auxiliary", name, logits, reduce_fn=lambda _, new: new, init_fn=lambda: None)


def _pool(x: Array, window: int) -> Array:
    """Max pool of stride 2 with partial windows at the end, as in the Caffe release."""
    return max_pool(x, window, 2, ceil=True)
