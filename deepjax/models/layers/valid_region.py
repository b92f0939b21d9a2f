"""Images of several sizes in one padded array: top-left aligned, the padding masked exactly.

A layer whose window reaches over an image's edge must find zeros (or -inf) there, not what earlier
layers computed from the padding. So one compiled program serves many sizes, exactly;
`deepjax.evaluation` uses it for full images. Outside of `valid_region(...)` nothing here has any
effect: layers compile to what they were.

Layers look up how far an image reaches in their map by that map's size: the maps of one network
that have a size in common have it for every image, which is checked.
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
    """Along one axis: where each image ends, and maps' lengths for each length of an image."""

    ends: Array  # (batch,) int32: pixels of each image
    least: int
    # length of the array's map -> lengths of an image's map, for image lengths from `least` on
    maps: dict[int, np.ndarray]


_HINT = "test by crops, or apply the network to images of one shape outside of valid_region()"
_CURRENT: contextvars.ContextVar[dict[int, _Axis] | None] = contextvars.ContextVar(
    "valid_region", default=None
)


@contextlib.contextmanager
def valid_region(shape: tuple[int, ...], ends: Array) -> Iterator[None]:
    """Context manager: images of this shape are valid up to `ends` and padding beyond.

    shape: (batch, height, width, channels); ends: (batch, 2) int32, height and width of each image
    in pixels, three quarters of the array's or more. Jit a function that enters this context; a
    function that is jitted already must not be called within, as it may have been traced without.
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
    """Whether images may be smaller than their array."""
    return _CURRENT.get() is not None


def mask_outside(x: Array, value: ArrayLike = 0.0) -> Array:
    """A map with `value` outside each image. x: (batch, height, width, channels)."""
    if not is_active():
        return x
    return jnp.where(valid_mask(x), x, jnp.asarray(value, x.dtype))


def propagate_extent(x: Array, y: Array, rule: SizeRule) -> None:
    """Record that a layer has made map y of map x, whose size is given by `rule`.

    To be called by every layer that may change sizes.
    """
    for axis, along in (_CURRENT.get() or {}).items():
        # 0: no image is so small
        sizes = np.array([max(0, rule(int(size), axis)) for size in _sizes(along, x.shape[axis])])
        if sizes[-1] != y.shape[axis]:
            raise AssertionError(
                f"a map of {x.shape[axis]} pixels became one of {y.shape[axis]}; its layer says "
                f"{sizes[-1]}"
            )
        if not np.array_equal(along.maps.setdefault(y.shape[axis], sizes), sizes):
            raise InputError(f"two maps of {y.shape[axis]} pixels end at different places; {_HINT}")


def masked_mean(x: Array) -> Array:
    """Mean over each image's pixels in at least float32: (b, h, w, channels) -> (b, channels)."""
    wide = at_least_float32(x.dtype)
    if not is_active():
        return jnp.mean(x, axis=(1, 2), dtype=wide)
    pixels = jnp.sum(valid_mask(x), axis=(1, 2), dtype=wide)
    return jnp.sum(mask_outside(x), axis=(1, 2), dtype=wide) / pixels


def _sizes(along: _Axis, size: int) -> np.ndarray:
    if size not in along.maps:
        raise InputError(f"the extent of images in a map of {size} pixels is unknown; {_HINT}")
    return along.maps[size]


def valid_mask(x: Array) -> Array:
    """Mask of the pixels of each image: (batch, height, width, 1) bool."""
    inside = jnp.ones((1, 1, 1, 1), bool)
    for axis, along in (_CURRENT.get() or {}).items():
        ends = jnp.asarray(_sizes(along, x.shape[axis]), jnp.int32)[along.ends - along.least]
        shape = [1, 1, 1, 1]
        shape[axis] = x.shape[axis]
        inside = inside & (
            jnp.arange(x.shape[axis], dtype=jnp.int32).reshape(shape) < ends.reshape(-1, 1, 1, 1)
        )
    return inside
