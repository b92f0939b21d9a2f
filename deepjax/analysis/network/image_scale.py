"""Warnings for images in an unusual scale or layout."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

COLOURS = (1, 3, 4)  # channels of usual images: grey, RGB, RGBA
MAX_NORMALISED = 20.0  # of a normalised image; pixels reach 255, those of digits 16
MAX_INTEGER = 8.0  # the same where every value is an integer


def warn_of_images(inputs: Any) -> None:
    """Warn of inputs that look like pixels without normalisation, or like NCHW.

    The scale is judged by the first image; not inside `jax.jit`. Warnings are UserWarnings.
    """
    for value in jax.tree.leaves(inputs):
        if jnp.ndim(value) == 4:
            for line in (_layout(jnp.shape(value)), _scale(value)):
                if line:
                    warnings.warn(line, stacklevel=3)


def _layout(shape: tuple[int, ...]) -> str:
    _, rows, columns, channels = shape
    if rows not in COLOURS or columns != channels or channels <= 4:
        return ""
    return (
        f"inputs of shape {shape} look like (batch, channels, height, width); Flax's convolutions "
        "take the channels last: images.transpose(0, 2, 3, 1)"
    )


def _scale(value: Any) -> str:
    if isinstance(value, Tracer | jax.ShapeDtypeStruct) or not jnp.issubdtype(
        jnp.result_type(value), jnp.floating
    ):
        return ""
    if jnp.shape(value)[-1] not in COLOURS or not jnp.size(value):
        return ""
    local = value.addressable_shards[0].data if isinstance(value, jax.Array) else value
    # The value may be concrete while an outer function is traced.
    with jax.ensure_compile_time_eval():
        # JAX refuses to slice on a device where a mesh of other devices is set. Else not on the
        # host, to which 256 photographs would be 154 MB to copy.
        is_mesh_set = not jax.sharding.get_abstract_mesh().empty
        image = np.asarray((np.asarray(local) if is_mesh_set else local)[:1], np.float32)
    largest = image.max(initial=0.0)
    is_integer = largest >= MAX_INTEGER and np.array_equal(image, np.round(image))
    if image.min(initial=0.0) < 0 or not (largest > MAX_NORMALISED or is_integer):
        return ""
    return (
        f"inputs look like pixels that were not normalised (the first image has values from "
        f"{image.min():g} to {largest:g}); networks are trained on (pixels - mean) / std"
    )
