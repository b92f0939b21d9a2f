"""Images of several sizes in one array: each begins in the upper left corner, and what lies beyond it is as if it were not there.

A layer whose window reaches over an image's edge must find its padding there, not what earlier layers made of the pixels beyond. So
one compiled program serves many sizes, exactly; `deepjax.evaluation` looks at whole images with it. Outside of `extents` nothing
here does anything: layers compile to what they were.

Layers find out how far an image reaches in their map by that map's size: the maps of one network that have a size in common have it
for every image, which is checked.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepjax.errors import InputError
from deepjax.models.layers.input_checks import at_least_float32

# (size of a map along an axis, the axis: 1 or 2) -> size of the map that a layer makes of it
SizeRule = Callable[[int, int], int]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Along one axis: where each image ends, and how long maps are for every length that an image may have."""

    ends: Array  # (batch,) int32: pixels of each image
    least: int
    # length of the whole array's map -> that of an image's, by the image's length from `least` on
    maps: dict[int, np.ndarray]


_HINT = "test by crops, or apply the network to images of one shape outside of extents()"
_CURRENT: contextvars.ContextVar[dict[int, _Axis] | None] = contextvars.ContextVar(
    "extents", default=None
)


@contextlib.contextmanager
def valid_region(shape: tuple[int, ...], ends: Array) -> Iterator[None]:
    """While the network is applied to images (batch, height, width, channels) of this shape, they end where `ends` says.

    ends: (batch, 2) int32, height and width of each image in pixels, three quarters of the array's or more. Jit a function that
    enters `extents`; one that is jitted already must not be called within, for it may have been traced without.
    """
    axes = {}
    for axis, size in ((1, shape[1]), (2, shape[2])):
        least = -(-3 * size // 4)
        axes[axis] = _Axis(ends[:, axis - 1], least, {size: np.arange(least, size + 1)})
    token = _CURRENT.set(axes)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def is_active() -> bool:
    """Whether images may end before their array does."""
    return _CURRENT.get() is not None


def mask_outside(x: Array, value: ArrayLike = 0.0) -> Array:
    """A map with `value` beyond the edge of each image. x: (batch, height, width, channels)."""
    if not is_active():
        return x
    return jnp.where(valid_mask(x), x, jnp.asarray(value, x.dtype))


def propagate_extent(x: Array, y: Array, rule: SizeRule) -> None:
    """A layer has made map y of map x, whose sizes `rule` tells. To be called by every layer that may change sizes."""
    for axis, along in (_CURRENT.get() or {}).items():
        # 0: no image is so small
        sizes = np.array([max(0, rule(int(size), axis)) for size in _sizes(along, x.shape[axis])])
        if sizes[-1] != y.shape[axis]:
            raise AssertionError(
                f"a map of {x.shape[axis]} pixels became one of {y.shape[axis]}; its layer says {sizes[-1]}"
            )
        if not np.array_equal(along.maps.setdefault(y.shape[axis], sizes), sizes):
            raise InputError(f"two maps of {y.shape[axis]} pixels end at different places; {_HINT}")


def masked_mean(x: Array) -> Array:
    """Mean over the map of each image, in at least float32. (batch, height, width, channels) -> (batch, channels)."""
    wide = at_least_float32(x.dtype)
    if not is_active():
        return jnp.mean(x, axis=(1, 2), dtype=wide)
    pixels = jnp.sum(valid_mask(x), axis=(1, 2), dtype=wide)
    return jnp.sum(mask_outside(x), axis=(1, 2), dtype=wide) / pixels


def _sizes(along: _Axis, size: int) -> np.ndarray:
    if size not in along.maps:
        raise InputError(
            f"no layer has said how far images reach in a map of {size} pixels; {_HINT}"
        )
    return along.maps[size]


def valid_mask(x: Array) -> Array:
    """(batch, height, width, 1) bool: which pixels of a map are an image's own."""
    inside = jnp.ones((1, 1, 1, 1), bool)
    for axis, along in (_CURRENT.get() or {}).items():
        ends = jnp.asarray(_sizes(along, x.shape[axis]), jnp.int32)[along.ends - along.least]
        shape = [1, 1, 1, 1]
        shape[axis] = x.shape[axis]
        inside = inside & (
            jnp.arange(x.shape[axis], dtype=jnp.int32).reshape(shape) < ends.reshape(-1, 1, 1, 1)
        )
    return inside
