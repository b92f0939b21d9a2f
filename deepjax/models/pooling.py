"""Pooling and local response normalisation on NHWC maps: the papers' padding, and gradients that are equal on every backend."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from deepjax.errors import InputError
from deepjax.models import extents

Pair = tuple[int, int]


def max_pool(x: Array, window: int, stride: int, padding: int = 0, ceil: bool = False) -> Array:
    """The largest value of each window; among equals the first in reading order has the whole gradient, as in PyTorch.

    Strided slices and selections take the place of a reduction, whose gradient would be a scatter that GPUs add up in any order.
    `padding`: on every side; `ceil`: a last window may hang over the lower and right edges (Caffe's and torchvision's ceil_mode),
    and a map smaller than the window has one.
    A NaN in a window comes out. x: (batch, height, width, channels) of a float dtype.
    """
    given, x = x, extents.fill(x, -jnp.inf)
    for axis in (2, 1):
        size = x.shape[axis]
        out, high = _extent(size, window, stride, padding, ceil)
        if out < 1:
            raise ValueError(f"a window of {window} does not fit a map of {size} pixels; give larger images")
        pads = [(0, 0, 0)] * x.ndim
        pads[axis] = (padding, high, 0)
        padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads) if padding or high else x
        views = (lax.slice_in_dim(padded, i, i + stride * (out - 1) + 1, stride, axis) for i in range(window))
        x = next(views)
        for view in views:
            x = jnp.where((view > x) | (view != view), view, x)
    extents.note(given, x, lambda size, axis: _extent(size, window, stride, padding, ceil)[0])
    return x


def avg_pool(x: Array, window: int, stride: int, padding: int = 0) -> Array:
    """The mean of each window, zeros of the padding counted (as the papers' Caffe layers and PyTorch do by default)."""
    sums = lax.reduce_window(
        extents.fill(x),
        np.zeros((), x.dtype),  # a NumPy constant: only then JAX sees a sum, which it can differentiate
        lax.add,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *((padding, padding),) * 2, (0, 0)),
    )
    extents.note(x, sums, lambda size, axis: (size + 2 * padding - window) // stride + 1)
    return sums / jnp.asarray(window * window, x.dtype)


def shortcut_pool(x: Array, stride: int) -> Array:
    """2x2 average before the projection of a ResNet-D shortcut; an odd edge is averaged over what there is."""
    if stride == 1:
        return x
    y = _strided_mean(extents.fill(x), stride)
    extents.note(x, y, lambda size, axis: -(-size // stride))
    if not extents.active():
        return y
    shares = _strided_mean(extents.inside(x).astype(x.dtype), stride)  # what there is of each region
    return extents.fill(y / jnp.maximum(shares, jnp.asarray(stride**-2, x.dtype)))


def adaptive_avg_pool(x: Array, size: int) -> Array:
    """Mean over size x size regions that cover a map of any size, as PyTorch's AdaptiveAvgPool2d; the map itself at that size."""
    if extents.active():
        raise InputError("regions that cover a map depend on its size; allowed within extents(): head='conv', no auxiliary heads")
    for axis in (1, 2):
        extent = x.shape[axis]
        if extent != size:
            x = _pool_axis(x, axis, [(i * extent // size, -(-(i + 1) * extent // size)) for i in range(size)])
    return x


def global_avg_pool(x: Array) -> Array:
    """Mean over the map in float32. (batch, height, width, channels) -> (batch, channels)."""
    return extents.mean(x)


def local_response_norm(x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    """Divide by (k + alpha / size * sum of squares over `size` neighbouring channels) ** beta, in float32.

    Krizhevsky et al. 2012, section 3.3, in the form of Caffe and PyTorch (alpha divided by the window). The defaults are those of
    GoogLeNet's release in Caffe; k = 2 is the AlexNet paper's.
    """
    squares = jnp.square(x.astype(jnp.float32))
    before = (size - 1) // 2
    window = (1,) * (x.ndim - 1) + (size,)
    padding = ((0, 0),) * (x.ndim - 1) + ((size // 2, before),)
    total = lax.reduce_window(squares, np.zeros((), np.float32), lax.add, window, (1,) * x.ndim, padding)
    return (x.astype(jnp.float32) * jnp.power(k + alpha / size * total, -beta)).astype(x.dtype)


def _extent(size: int, window: int, stride: int, padding: int, ceil: bool) -> Pair:
    """Number of windows along an axis, and the padding that they need at its end."""
    room = size + 2 * padding - window
    out = (max(0, -(-room // stride)) if ceil else room // stride) + 1
    if ceil and (out - 1) * stride >= size + padding:  # the last window must begin inside
        out -= 1
    return out, max(0, (out - 1) * stride + window - size - padding)


def _strided_mean(x: Array, stride: int) -> Array:
    """Mean of stride x stride regions; an odd edge over what the array has."""
    for axis in (1, 2):
        x = _pool_axis(x, axis, [(i, min(i + stride, x.shape[axis])) for i in range(0, x.shape[axis], stride)])
    return x


def _pool_axis(x: Array, axis: int, ranges: list[Pair]) -> Array:
    regions = [lax.slice_in_dim(x, first, last, axis=axis) for first, last in ranges]
    return jnp.concatenate([jnp.mean(region, axis, keepdims=True) for region in regions], axis)
