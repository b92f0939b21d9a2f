"""Pooling and local response normalisation (NHWC), with gradients equal on every backend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from deepjax.errors import InputError, require
from deepjax.models.layers import valid_region
from deepjax.models.layers.input_checks import at_least_float32

Pair = tuple[int, int]


def max_pool(x: Array, window: int, stride: int, padding: int = 0, ceil: bool = False) -> Array:
    """Maximum of each window; ties send the gradient to the first maximum, as in PyTorch.

    Computed from strided slices and selections: the gradient of a reduction would be a scatter,
    which GPUs sum in any order. `padding`: on every side; `ceil`: partial windows at the lower and
    right edges (ceil_mode of Caffe and torchvision), also for a map smaller than the window. A NaN
    in a window is propagated. x: (batch, height, width, channels) of a float dtype.
    """
    given, x = x, valid_region.mask_outside(x, -jnp.inf)
    for size in (x.shape[2], x.shape[1]):
        if _output_extent(size, window, stride, padding, ceil)[0] < 1:
            raise ValueError(
                f"a window of {window} does not fit a map of {size} pixels; give larger images"
            )
    y = (_max_pool_argmax_vjp if is_faster_with_argmax(window, stride) else _window_max)(
        x, window, stride, padding, ceil
    )
    valid_region.propagate_extent(
        given, y, lambda size, axis: _output_extent(size, window, stride, padding, ceil)[0]
    )
    return y


def max_pool_same(x: Array, window: int, stride: int) -> Array:
    """`max_pool` with the padding "SAME" of XLA, on one side only for a map of even size."""
    require(not valid_region.is_active(), "padding", "SAME", "symmetric for dense evaluation")
    pads = lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return max_pool(padded, window, stride)


def is_faster_with_argmax(window: int, stride: int) -> bool:
    """Whether the backward pass is faster from the argmax of each window (one byte).

    An H200 takes 1.04 for 2.19 ms (3x3 at stride 2, 256x112x112x64, forward and backward) and 0.58
    for 0.50 at stride 1; two CPU cores take 0.6 of the time where windows do not overlap, 1.2 to 8
    times as long where they do.
    """
    fits = window**2 <= 256
    return fits and stride > 1 and (window <= stride or jax.default_backend() != "cpu")


def _window_max(x: Array, window: int, stride: int, padding: int, ceil: bool) -> Array:
    """The maximum of each row of a window, then of these."""
    for axis in (2, 1):
        x = functools.reduce(_maximum, _window_slices(x, axis, window, stride, padding, ceil))
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool_argmax_vjp(x: Array, window: int, stride: int, padding: int, ceil: bool) -> Array:
    """The same, whose backward pass keeps only the argmax of each window, one byte."""
    return _window_max(x, window, stride, padding, ceil)


@_max_pool_argmax_vjp.defjvp
def _max_pool_argmax_jvp(
    window: int,
    stride: int,
    padding: int,
    ceil: bool,
    primals: tuple[Array],
    tangents: tuple[Array],
) -> tuple[Array, Array]:
    y, place = _argmax(primals[0], window, stride, padding, ceil)
    return y, _at_argmax(tangents[0], place, window, stride, padding)


def _argmax(x: Array, window: int, stride: int, padding: int, ceil: bool) -> tuple[Array, Array]:
    """The maximum of each window, and its index in reading order as uint8."""
    rows = _window_slices(x, 1, window, stride, padding, ceil)
    best, *others = [
        view for row in rows for view in _window_slices(row, 2, window, stride, padding, ceil)
    ]
    place = jnp.zeros(best.shape, jnp.uint8)
    for number, view in enumerate(others, start=1):
        beats = _is_greater(view, best)
        best, place = jnp.where(beats, view, best), jnp.where(beats, jnp.uint8(number), place)
    return best, place


# Differentiated, it would keep a mask for each place; checkpoint has it keep the places and look
# again.
@functools.partial(jax.checkpoint, static_argnums=(2, 3, 4), prevent_cse=False)
def _at_argmax(t: Array, place: Array, window: int, stride: int, padding: int) -> Array:
    """Gather t at each window's argmax.

    Pixels with the same offset modulo the stride are separated first. So the gradient, which JAX
    derives from this, is a sum of at most ceil(window / stride) squared shifted maps for each
    offset, joined by concatenation; the gradient of strided slices is a sum of window squared
    dilated maps, each as large as the image.
    """
    count = [-(-size // stride) for size in t.shape[1:3]]
    zero = jnp.zeros((), t.dtype)
    more = ((0, n * stride - size, 0) for n, size in zip(count, t.shape[1:3], strict=True))
    t = lax.pad(t, zero, [(0, 0, 0), *more, (0, 0, 0)]).reshape(
        t.shape[0], count[0], stride, count[1], stride, t.shape[3]
    )
    alike = [lax.split(row, [1] * stride, 4) for row in lax.split(t, [1] * stride, 2)]
    total = jnp.zeros(place.shape, t.dtype)
    for i in range(window):
        for j in range(window):
            (down, row), (right, column) = divmod(i - padding, stride), divmod(j - padding, stride)
            shifts = (
                (-by, out + by - n, 0)
                for by, out, n in zip((down, right), place.shape[1:3], count, strict=True)
            )
            shifted = lax.pad(
                lax.squeeze(alike[row][column], (2, 4)), zero, [(0, 0, 0), *shifts, (0, 0, 0)]
            )
            total += jnp.where(place == window * i + j, shifted, zero)
    return total


def _window_slices(
    x: Array, axis: int, window: int, stride: int, padding: int, ceil: bool
) -> list[Array]:
    """Along an axis: the first pixel of each window, the second, and so on."""
    out, high = _output_extent(x.shape[axis], window, stride, padding, ceil)
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (padding, high, 0)
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads) if padding or high else x
    return [
        lax.slice_in_dim(padded, i, i + stride * (out - 1) + 1, stride, axis) for i in range(window)
    ]


def _maximum(best: Array, view: Array) -> Array:
    return jnp.where(_is_greater(view, best), view, best)


def _is_greater(view: Array, best: Array) -> Array:
    """Whether a later pixel is greater, or NaN."""
    return (view > best) | (view != view)


def avg_pool(x: Array, window: int, stride: int, padding: int = 0) -> Array:
    """Mean of each window in at least float32; zeros of the padding count, as in PyTorch."""
    wide = at_least_float32(x.dtype)
    sums = lax.reduce_window(
        valid_region.mask_outside(x).astype(wide),
        # a NumPy constant: only then JAX sees a sum, which it can differentiate
        np.zeros((), wide),
        lax.add,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *((padding, padding),) * 2, (0, 0)),
    )
    valid_region.propagate_extent(
        x, sums, lambda size, axis: (size + 2 * padding - window) // stride + 1
    )
    return (sums / (window * window)).astype(x.dtype)


def shortcut_pool(x: Array, stride: int) -> Array:
    """2x2 average before the projection of a ResNet-D shortcut; odd edges average what exists."""
    if stride == 1:
        return x
    y = _strided_mean(valid_region.mask_outside(x), stride)
    valid_region.propagate_extent(x, y, lambda size, axis: -(-size // stride))
    if not valid_region.is_active():
        return y
    # fraction of each region that the image covers
    covered = _strided_mean(valid_region.valid_mask(x).astype(x.dtype), stride)
    return valid_region.mask_outside(y / jnp.maximum(covered, jnp.asarray(stride**-2, x.dtype)))


def adaptive_avg_pool(x: Array, size: int) -> Array:
    """Mean over size x size regions that cover a map of any size, as AdaptiveAvgPool2d.

    A map of that size is returned unchanged.
    """
    if valid_region.is_active():
        raise InputError(
            "regions that cover a map depend on its size; allowed within valid_region(): "
            "head='conv', no auxiliary heads"
        )
    for axis in (1, 2):
        extent = x.shape[axis]
        if extent != size:
            x = _pool_axis(
                x, axis, [(i * extent // size, -(-(i + 1) * extent // size)) for i in range(size)]
            )
    return x


def global_avg_pool(x: Array) -> Array:
    """Mean over the map in at least float32. (batch, height, width, channels) -> (batch, channels)

    Within `valid_region` only each image's own pixels count.
    """
    return valid_region.masked_mean(x)


def local_response_norm(
    x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Array:
    """Divide by (k + alpha / size * sum of squares of `size` neighbouring channels) ** beta.

    In at least float32. Krizhevsky et al. 2012, section 3.3, in the form of Caffe and PyTorch
    (alpha is divided by the window). The defaults are those of GoogLeNet's Caffe release; k = 2 is
    AlexNet's.
    """
    wide = at_least_float32(x.dtype)
    squares = jnp.square(x.astype(wide))
    before = (size - 1) // 2
    window = (1,) * (x.ndim - 1) + (size,)
    padding = ((0, 0),) * (x.ndim - 1) + ((size // 2, before),)
    total = lax.reduce_window(squares, np.zeros((), wide), lax.add, window, (1,) * x.ndim, padding)
    return (x.astype(wide) * jnp.power(k + alpha / size * total, -beta)).astype(x.dtype)


def _output_extent(size: int, window: int, stride: int, padding: int, ceil: bool) -> Pair:
    """Number of windows along an axis, and the padding that they need at its end."""
    room = size + 2 * padding - window
    out = (max(0, -(-room // stride)) if ceil else room // stride) + 1
    if ceil and (out - 1) * stride >= size + padding:  # the last window must begin inside
        out -= 1
    return out, max(0, (out - 1) * stride + window - size - padding)


def _strided_mean(x: Array, stride: int) -> Array:
    """Mean of stride x stride regions; odd edges average what exists."""
    for axis in (1, 2):
        x = _pool_axis(
            x, axis, [(i, min(i + stride, x.shape[axis])) for i in range(0, x.shape[axis], stride)]
        )
    return x


def _pool_axis(x: Array, axis: int, ranges: list[Pair]) -> Array:
    regions = [lax.slice_in_dim(x, first, last, axis=axis) for first, last in ranges]
    return jnp.concatenate([jnp.mean(region, axis, keepdims=True) for region in regions], axis)
