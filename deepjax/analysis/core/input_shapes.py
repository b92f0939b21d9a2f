"""Shapes and dtypes of a network's inputs, from the shape of one example or from inputs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.analysis.core.module import shapes_of
from deepjax.errors import require

InputShape = Any
"""One input, or a tuple of inputs, each of them

- the shape of one example, such as (height, width, channels): float32, without batch axis;
- a `jax.ShapeDtypeStruct`, an array, or a tree of them, such as a dict: with batch axis.
"""
_ALLOWED = (
    "(height, width, channels) of one image, each from 1 up; or a jax.ShapeDtypeStruct or array as "
    "the network gets it, such as jax.ShapeDtypeStruct((1, 128), jnp.int32) for tokens; or a tuple "
    "of these for several inputs"
)


def input_shapes(input_shape: InputShape, batch: int = 1) -> tuple[Any, ...]:
    """Shapes and dtypes of the arguments of the network's call.

    batch: the batch size, for shapes of one example. Raises InputError for anything else, and for
    another batch size where no shape of one example is given.
    """
    require(_is_integer(batch) and batch >= 1, "batch", batch, "an integer from 1 up")
    several = isinstance(input_shape, tuple | list) and not is_shape(input_shape)
    inputs = tuple(input_shape) if several else (input_shape,)
    require(len(jax.tree.leaves(inputs)) > 0, "input_shape", input_shape, _ALLOWED)
    have_batch_axis = not any(is_shape(each) for each in inputs)
    require(
        batch == 1 or not have_batch_axis,
        "batch",
        batch,
        "1 where inputs are given with their own examples' axis",
    )
    return tuple(_shapes(each, batch) for each in inputs)


def is_shape(value: Any) -> bool:
    """Whether it is the shape of one example: a sequence of integers."""
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(_is_integer, value))


def typed_shapes(inputs: Any) -> str:
    """Types and shapes as JAX writes them: "float32[1,8,8,3], int32[1,77]"."""
    return ", ".join(
        f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(inputs)
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _shapes(value: Any, batch: int) -> Any:
    if is_shape(value):
        require(min(value) >= 1, "input_shape", tuple(value), _ALLOWED)
        return jax.ShapeDtypeStruct((batch, *map(int, value)), jnp.float32)
    require(not isinstance(value, str | Sequence), "input_shape", value, _ALLOWED)
    structure, leaves = shapes_of(value)
    return jax.tree.unflatten(structure, leaves)
