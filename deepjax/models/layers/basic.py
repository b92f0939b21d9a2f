"""Layers that several families share: convolution, linear layer, parameter-free shortcut, sum."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from deepjax.errors import InputError, require
from deepjax.models.layers import valid_region
from deepjax.models.layers.conv_lowering import convolve
from deepjax.models.layers.initializers import Initialization, Initializer
from deepjax.models.layers.input_checks import check_dtype

ModuleDef = Callable[..., Any]
Padding = Literal["symmetric", "SAME"]
"""Of 3x3 windows with a stride: 1 on every side, or as XLA's "SAME", 0 and 1 for even sizes."""

SIZE_FIELDS = ("num_classes", "width", "stem_width", "groups", "group_width")


def check_fields(module: nn.Module) -> None:
    """Raise InputError for a value outside a field's Literal type, a size below 1, a bad dtype."""
    for field in dataclasses.fields(module):
        given = getattr(module, field.name)
        if get_origin(field.type) is Literal:
            allowed = get_args(field.type)
            require(given in allowed, field.name, given, ", ".join(map(repr, allowed)))
        if field.name in SIZE_FIELDS:
            is_integer = isinstance(given, int | np.integer) and not isinstance(given, bool)
            require(is_integer and int(given) >= 1, field.name, given, "an integer, 1 or more")
        if field.name in ("dtype", "param_dtype"):
            check_dtype(field.name, getattr(module, field.name))


def broadcast_like(parameter: Array, x: Array) -> Array:
    """A parameter broadcast to the shape and dtype of x; its gradient is summed in float32.

    A bfloat16 sum stops growing once it is 256 times its terms: the gradient of a bias over 16 maps
    of 28x28 would be wrong by 73 % on a CPU. x: (..., channels); parameter: () or (channels,).
    """
    wide = parameter if parameter.dtype.itemsize >= 4 else parameter.astype(jnp.float32)
    return jnp.broadcast_to(wide, x.shape).astype(x.dtype)


class Conv(nn.Conv):
    """linen's convolution, whose bias (`biased`, not `use_bias`) is added by `broadcast_like`."""

    use_bias: bool = False
    biased: bool = False

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        check_channels(self, self.feature_group_count, inputs)
        y = super().__call__(inputs)
        if not self.biased:
            return y
        return y + broadcast_like(
            self.param("bias", self.bias_init, (self.features,), self.param_dtype), y
        )


class Dense(nn.Dense):
    """linen's linear layer, whose bias is added by `broadcast_like`, not by linen's `use_bias`."""

    use_bias: bool = False

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        y = super().__call__(inputs)
        return y + broadcast_like(
            self.param("bias", self.bias_init, (self.features,), self.param_dtype), y
        )


def check_channels(layer: nn.Module, groups: int, x: Array) -> None:
    """Raise InputError where a layer's kernel does not fit the channels of x.

    The kernel is (rows, columns, in / groups, out).
    """
    if layer.is_initializing() or not layer.has_variable("params", "kernel"):
        return
    channels = np.shape(nn.meta.unbox(layer.get_variable("params", "kernel")))[-2] * groups
    if channels != x.shape[-1]:
        raise InputError(
            f"{layer.name} is given {x.shape}, its weights are for {channels} channels; allowed: "
            "images (batch, height, width, channels) and fields with which the variables were made"
        )


def conv_factory(
    init: Initializer,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    use_bias: bool = False,
    strided_3x3: Padding = "symmetric",
) -> ModuleDef:
    """conv(features, kernel=3, stride=1, groups=1, padding=None, name=None) -> module.

    `kernel`: a number or (rows, columns). The default padding is symmetric and keeps the map's size
    at stride 1, as in the papers and torchvision. `strided_3x3`: of 3x3 convolutions with a stride;
    "SAME" pads maps of even size on one side only, as in flax's examples.
    """

    def conv(
        features: int,
        kernel: int | Sequence[int] = 3,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        **options: Any,
    ) -> Conv:
        size = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        sides = [(side - 1) // 2 if padding is None else padding for side in size]
        same = strided_3x3 == "SAME" and stride > 1 and size == (3, 3)
        defaults = {
            "strides": (stride, stride),
            "feature_group_count": groups,
            "padding": "SAME" if same else tuple((side, side) for side in sides),
            "biased": use_bias,
            "kernel_init": init,
            "conv_general_dilated": convolve,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        return Conv(features, size, **(defaults | options))

    return conv


def dense(
    features: int,
    fan_in: int,
    init: Initialization,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    name: str,
) -> Dense:
    """A linear layer with bias, in the family's initialisation."""
    biases = init.dense_bias(fan_in)
    return Dense(
        features,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=init.dense,
        bias_init=biases,
        name=name,
    )


def shortcut_a(x: Array, channels: int, stride: int) -> Array:
    """Option A shortcut: subsample, then pad the new channels with zeros; no parameters.

    He et al. 2015, section 3.3. x: (batch, height, width, c) ->
    (batch, ceil(height / stride), ceil(width / stride), channels), channels >= c.
    """
    strided = x[:, ::stride, ::stride, :]
    valid_region.propagate_extent(x, strided, lambda size, axis: -(-size // stride))
    return jnp.pad(strided, ((0, 0), (0, 0), (0, 0), (0, channels - strided.shape[-1])))


@jax.custom_jvp
def relu_of_sum(x: Array) -> Array:
    """max(x, 0), whose gradient is computed from the result in place of x.

    The result of a block is kept anyway for the next convolution; x is a sum of two maps, which a
    GPU would read once more. The barrier keeps XLA from undoing this. On an H200 ResNet-50's step
    takes 0.984 of the time: in each block's backward pass two kernels become one, and 4 % of all
    bytes are not moved.
    """
    return jnp.maximum(x, 0)


@relu_of_sum.defjvp
def _relu_of_sum_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = relu_of_sum(primals[0])
    return y, jnp.where(lax.optimization_barrier(y) > 0, tangents[0], jnp.zeros_like(tangents[0]))


class Sum(nn.Module):
    """shortcut + branch, as a module, so that instruments see both (`analysis.trace`)."""

    def __call__(self, shortcut: Array, branch: Array) -> Array:
        return shortcut + branch


def tag_stage(module: nn.Module, name: str, x: Array) -> Array:
    """Mark a stage's output for `deepjax.models.features`, and as "block" for rematerialisation."""
    return checkpoint_name(tag_feature(module, name, x), "block")


def tag_feature(module: nn.Module, name: str, x: Array) -> Array:
    """Mark an output for `deepjax.models.features`; returns it."""
    if collects_features(module):
        # sow would refuse the name of a stage that is one module
        module.put_variable("features", name, x)
    return x


def collects_features(module: nn.Module) -> bool:
    """Whether the network is called by `deepjax.models.features`, or for a table of stages."""
    return not module.is_initializing() and module.is_mutable_collection("features")
