"""Layers that several families share: convolutions with the papers' padding, the classifier, parameter-free shortcuts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from deepjax.errors import require
from deepjax.models import extents
from deepjax.models.initializers import Initialization, Initializer

ModuleDef = Callable[..., Any]

SIZES = ("num_classes", "width", "stem_width", "groups", "group_width")


def check_fields(module: nn.Module) -> None:
    """Raise InputError for a choice outside the names that its Literal type allows, and for a size below 1."""
    for field in dataclasses.fields(module):
        given = getattr(module, field.name)
        if get_origin(field.type) is Literal:
            allowed = get_args(field.type)
            require(given in allowed, field.name, given, ", ".join(map(repr, allowed)))
        if field.name in SIZES:
            require(given >= 1, field.name, given, "1 or more")


def conv_factory(init: Initializer, dtype: DTypeLike, param_dtype: DTypeLike, use_bias: bool = False) -> ModuleDef:
    """A factory of convolutions: conv(features, kernel=3, stride=1, groups=1, padding=None, name=None) -> module.

    `kernel`: a number or (rows, columns). By default the padding is symmetric and keeps the map at stride 1, as the papers and
    torchvision have it; `"SAME"` would pad strided layers on one side only.
    """

    def conv(
        features: int, kernel: int | Sequence[int] = 3, stride: int = 1, groups: int = 1, padding: int | None = None, **options: Any
    ) -> nn.Conv:
        size = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        sides = [(side - 1) // 2 if padding is None else padding for side in size]
        defaults = {
            "strides": (stride, stride),
            "feature_group_count": groups,
            "padding": tuple((side, side) for side in sides),
            "use_bias": use_bias,
            "kernel_init": init,
            "conv_general_dilated": convolve,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        return nn.Conv(features, size, **(defaults | options))

    return conv


def dense(features: int, fan_in: int, init: Initialization, dtype: DTypeLike, param_dtype: DTypeLike, name: str) -> nn.Dense:
    """A linear layer with bias, drawn as the family draws its linear layers."""
    return nn.Dense(
        features, kernel_init=init.dense, bias_init=init.dense_bias(fan_in), dtype=dtype, param_dtype=param_dtype, name=name
    )


def convolve(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any) -> Array:
    """lax.conv_general_dilated, but on a CPU some convolutions become one matrix product, equal up to rounding.

    1x1 convolutions, since XLA:CPU's products use all cores where its convolutions often use one: 32x16x16x64 to 256 channels takes
    19.8 ms as a convolution with its gradients, 9.0 ms as a product, on two cores. And those whose result is smaller than the
    kernel, for which it has no fast path: 3x3 at stride 2 from 4x4 maps of 512 channels takes 302 ms and 12 ms.
    x: (batch, height, width, in), kernel: (rows, columns, in, out).
    """
    if extents.active():
        return _convolve_within(x, kernel, strides, padding, **options)
    if not _is_better_as_product(x, kernel, strides, padding, options):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    rows, columns, channels, out = kernel.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))) if any(map(any, padding)) else x
    height, width = _result_of(x, kernel, strides, padding)
    ends = strides[0] * (height - 1) + 1, strides[1] * (width - 1) + 1
    windows = [padded[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]] for i in range(rows) for j in range(columns)]
    patches = jnp.concatenate(windows, axis=-1) if len(windows) > 1 else windows[0]
    return pointwise_convolution(patches, kernel.reshape(rows * columns * channels, out), precision=options.get("precision"))


@functools.partial(jax.jit, static_argnames="precision")
def pointwise_convolution(x: Array, kernel: Array, precision: Any = None) -> Array:
    """(batch, height, width, in) and (in, out) -> (batch, height, width, out), as the product of two matrices.

    jit gives it a name in the traced computation, by which `analysis.receptive_field` knows that pixels stay apart. A product that
    contracts over the map's axes in place of one takes three times as long for the kernel's gradient.
    """
    return jnp.dot(x.reshape(-1, x.shape[-1]), kernel, precision=precision).reshape(*x.shape[:-1], -1)


def _is_better_as_product(
    x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], options: dict[str, Any]
) -> bool:
    """Whether this CPU computes a matrix product of the windows faster."""
    plain = options.get("feature_group_count", 1) == 1 and not any(
        by != 1 for name in ("lhs_dilation", "rhs_dilation") for by in options.get(name) or ()
    )
    if jax.default_backend() != "cpu" or not plain:
        return False
    sides = kernel.shape[:2]
    result = _result_of(x, kernel, strides, padding)
    return sides == (1, 1) or (all(result) and any(extent < side for extent, side in zip(result, sides, strict=True)))


def _result_of(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Rows and columns that come out."""
    height, width = (
        max(0, (size + sum(sides) - side) // stride + 1)
        for size, side, stride, sides in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    )
    return height, width


def _convolve_within(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any) -> Array:
    """A convolution of images that end before their array does: their padding begins where they end."""
    reaches = kernel.shape[:2] != (1, 1)
    y = lax.conv_general_dilated(extents.fill(x) if reaches else x, kernel, strides, padding, **options)
    extents.note(x, y, lambda size, axis: (size + sum(padding[axis - 1]) - kernel.shape[axis - 1]) // strides[axis - 1] + 1)
    return y


def shortcut_a(x: Array, channels: int, stride: int) -> Array:
    """Option A shortcut (He et al. 2015, section 3.3): subsample, then fill the new channels with zeros; no parameters.

    x: (batch, height, width, c) -> (batch, ceil(height / stride), ceil(width / stride), channels), channels >= c.
    """
    strided = x[:, ::stride, ::stride, :]
    extents.note(x, strided, lambda size, axis: -(-size // stride))
    return jnp.pad(strided, ((0, 0), (0, 0), (0, 0), (0, channels - strided.shape[-1])))


class Sum(nn.Module):
    """shortcut + branch, arrays of one shape: a module of its own, so that instruments see what each brings (`analysis.trace`)."""

    def __call__(self, shortcut: Array, branch: Array) -> Array:
        return shortcut + branch


def expose(module: nn.Module, name: str, x: Array) -> Array:
    """Offer a stage to `deepjax.models.features` under its name, and to rematerialisation as "block"; else it costs nothing."""
    if not module.is_initializing() and module.is_mutable_collection("features"):
        module.put_variable("features", name, x)  # sow would refuse the name of a stage that is one module
    return checkpoint_name(x, "block")
