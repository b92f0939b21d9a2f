"""Checks of a network's input: shape and dtype of images, and dtypes of the computation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from deepjax.errors import InputError, require

COLOURS = (1, 3, 4)  # channels of usual images: grey, RGB, RGBA


def at_least_float32(dtype: DTypeLike) -> Any:
    """The dtype of sums, statistics and logits: float32, or float64 in a float64 network.

    >>> at_least_float32("bfloat16")
    dtype('float32')
    """
    return np.dtype(dtype) if jnp.finfo(dtype).bits > 32 else np.dtype(np.float32)


def check_dtype(field: str, dtype: DTypeLike) -> None:
    """Raise InputError for a dtype that is not floating, and for float64 without JAX_ENABLE_X64."""
    is_float = jnp.issubdtype(dtype, jnp.floating)
    require(
        is_float,
        field,
        str(np.dtype(dtype)),
        "a floating type, such as float32, bfloat16 or float64",
    )
    if jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        raise InputError(
            f"{field} is {np.dtype(dtype)}, of which JAX would make float32; set JAX_ENABLE_X64=1 "
            "for float64"
        )


def as_images(images: ArrayLike, dtype: DTypeLike) -> Array:
    """Images (batch, height, width, channels) in the dtype of a network.

    Raises InputError for another number of axes, for integers, and for (batch, channels, height,
    width). The last is detected where 1, 3 or 4 rows would have a square of columns and channels,
    or 3 rows more than 4 of each; so images may have any number of channels.
    """
    shape = np.shape(images)
    if len(shape) != 4:
        hint = "; one image needs an axis for the batch: images[None]" if len(shape) == 3 else ""
        raise InputError(
            f"images are {shape}; allowed: 4 axes, (batch, height, width, channels){hint}"
        )
    _, rows, columns, channels = shape
    if rows in COLOURS and min(columns, channels) > 4 and (columns == channels or rows == 3):
        raise InputError(
            f"images are {shape}, which looks like (batch, channels, height, width); allowed: "
            "(batch, height, width, channels), as of images.transpose(0, 2, 3, 1)"
        )
    given = jnp.result_type(images)
    if not jnp.issubdtype(given, jnp.floating):
        raise InputError(
            f"images are {given}; allowed: floats, normalised as the weights expect, not pixels of "
            "0 to 255"
        )
    return jnp.asarray(images, dtype)
