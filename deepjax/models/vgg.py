"""The VGG networks of Simonyan and Zisserman 2014 (arXiv:1409.1556): their Table 1.

| A (11)   | A-LRN | B (13)  | C (16)       | D (16)  | E (19)  | filters |
|----------|-------|---------|--------------|---------|---------|---------|
| 3        | 3 LRN | 3 3     | 3 3          | 3 3     | 3 3     | 64      |
| 3        | 3     | 3 3     | 3 3          | 3 3     | 3 3     | 128     |
| 3 3      | 3 3   | 3 3     | 3 3 1        | 3 3 3   | 3 3 3 3 | 256     |
| 3 3      | 3 3   | 3 3     | 3 3 1        | 3 3 3   | 3 3 3 3 | 512     |
| 3 3      | 3 3   | 3 3     | 3 3 1        | 3 3 3   | 3 3 3 3 | 512     |

The numbers are kernel sizes; a 2x2 max pool follows each row, then three fully connected layers:
4096, 4096, classes.
"""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from deepjax.errors import InputError
from deepjax.models.layers import valid_region
from deepjax.models.layers.basic import (
    broadcast_like,
    check_fields,
    collects_features,
    conv_factory,
    tag_feature,
    tag_stage,
)
from deepjax.models.layers.initializers import (
    Initialization,
    gaussian,
    glorot_uniform,
    he_normal_fan_out,
)
from deepjax.models.layers.input_checks import as_images, at_least_float32
from deepjax.models.layers.norms import Norm, Scope, norm_factory
from deepjax.models.layers.pooling import adaptive_avg_pool, local_response_norm, max_pool

Configuration = Literal["A", "A-LRN", "B", "C", "D", "E"]

# Kernel sizes of the convolutions of each stage.
CONFIGURATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
WIDENING = (1, 2, 4, 8, 8)
MAP = 7  # pixels of the map that the fully connected layers see: 224 / 2 ** 5

INITIALIZATION = {
    "glorot": Initialization(glorot_uniform, glorot_uniform),
    "paper": Initialization(gaussian(0.1), gaussian(0.1)),
    "torchvision": Initialization(he_normal_fan_out, gaussian(0.01)),
}


class FullyConnected(nn.Module):
    """A linear layer over a window of a map; with `slide` over every window, as a convolution.

    x: (batch, height, width, in) -> (batch, height - window + 1, width - window + 1, features);
    without `slide` the map must be window x window. The kernel is (window * window * in, features),
    rows ordered by height, width, channel.
    """

    features: int
    window: int
    slide: bool
    initialization: Initialization
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        shape = (self.window * self.window * channels, self.features)
        kernel = self.param("kernel", self.initialization.dense, shape, self.param_dtype).astype(
            self.dtype
        )
        bias = self.param(
            "bias", self.initialization.dense_bias(shape[0]), shape[1:], self.param_dtype
        )
        x = x.astype(self.dtype)
        if self.slide:
            filters = kernel.reshape(self.window, self.window, channels, self.features)
            x = valid_region.mask_outside(x) if self.window > 1 else x
            y = lax.conv_general_dilated(
                x, filters, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            valid_region.propagate_extent(x, y, lambda size, axis: size - self.window + 1)
        else:
            y = (x.reshape(x.shape[0], -1) @ kernel)[:, None, None, :]
        return y + broadcast_like(bias, y)


class VGG(nn.Module):
    """Five stages of small filters and three fully connected layers.

    images: (batch, height, width, channels) floats, at least 32 pixels high and wide -> float32
    logits (batch, num_classes). Raises InputError for smaller images. `head="fc"`: a map of another
    size is averaged to 7x7, as in torchvision; none is at 224 pixels. `head="conv"`: the same
    weights slide over the map and the scores are averaged: the paper's dense evaluation (section
    3.2), for images of 224 pixels or more. `width`: filters of the first stage; the fully connected
    layers have 64 times as many. `initialization`: "glorot", which section 3.1 recommends in the
    end; "paper", its Gaussian of variance 0.01 (for A alone; the deeper networks started from a
    trained A); or "torchvision".
    """

    configuration: Configuration = "D"
    num_classes: int = 1000
    width: int = 64
    head: Literal["fc", "conv"] = "fc"
    dropout: float = 0.5
    norm: Norm = "none"
    bn_scope: Scope = "global"
    initialization: Literal["glorot", "paper", "torchvision"] = "glorot"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        check_fields(self)
        x = as_images(images, self.dtype)
        _check_size(images.shape, self.head)
        init = INITIALIZATION[self.initialization]
        conv = conv_factory(init.conv, self.dtype, self.param_dtype, use_bias=True)
        norm = norm_factory(self.norm, train, self.bn_scope, self.dtype, self.param_dtype)
        for stage, kernels in enumerate(CONFIGURATIONS[self.configuration], start=1):
            for layer, kernel in enumerate(kernels, start=1):
                x = conv(
                    self.width * WIDENING[stage - 1], kernel, name=f"stage{stage}_conv{layer}"
                )(x)
                x = norm(name=f"stage{stage}_norm{layer}")(x)
                # alpha is 1e-4 per neighbour (Krizhevsky et al. 2012)
                if self.configuration == "A-LRN" and stage == 1:
                    x = local_response_norm(nn.relu(x), 5, 5e-4, 0.75, 2.0)
                # ReLU after the pool is bitwise identical, gradients too, on 1/4 of the pixels.
                x = nn.relu(max_pool(x, 2, 2) if layer == len(kernels) else x)
            x = tag_stage(self, f"stage{stage}", x)
        return self._head(x, init, train)

    def _head(self, x: Array, init: Initialization, train: bool) -> Array:
        slide, wide = self.head == "conv", at_least_float32(self.dtype)
        x = x if slide else adaptive_avg_pool(x, MAP)
        for layer, window in ((6, MAP), (7, 1)):
            layer_of = FullyConnected(
                64 * self.width,
                window,
                slide,
                init,
                self.dtype,
                self.param_dtype,
                name=f"head_fc{layer}",
            )
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(layer_of(x)))
        if collects_features(self):
            tag_feature(self, "pooled", valid_region.masked_mean(x))
        scores = FullyConnected(
            self.num_classes, 1, slide, init, wide, self.param_dtype, name="head_fc8"
        )(x)
        return valid_region.masked_mean(scores)


def _check_size(shape: tuple[int, ...], head: str) -> None:
    least = 32 * MAP if head == "conv" else 32
    if min(shape[1:3]) < least:
        raise InputError(
            f"images are {shape[1]}x{shape[2]} pixels; VGG with head={head!r} needs {least} or "
            "more a side"
        )
