"""What a network is called with, from a shape of one example or from inputs of any kind."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.analysis.core.module import shapes_of
from deepjax.errors import require

InputShape = Any
"""One input, or a tuple of several, each of them

- a shape of one example, such as (height, width, channels): float32, and the examples' axis is put before it;
- a `jax.ShapeDtypeStruct`, an array, or a tree of them, such as a dict: as the network gets it, the examples' axis included.
"""
_ALLOWED = (
    "(height, width, channels) of one image, each from 1 up; or a jax.ShapeDtypeStruct or array as the network gets it, "
    "such as jax.ShapeDtypeStruct((1, 128), jnp.int32) for tokens; or a tuple of these for several inputs"
)


def input_shapes(input_shape: InputShape, batch: int = 1) -> tuple[Any, ...]:
    """Shapes and dtypes of the arguments of the network's call. `batch`: examples, for shapes of one.

    Raises InputError for anything else, and for another batch than 1 where no shape of one example is given.
    """
    require(_is_whole(batch) and batch >= 1, "batch", batch, "a whole number from 1 up")
    several = isinstance(input_shape, tuple | list) and not is_shape(input_shape)
    inputs = tuple(input_shape) if several else (input_shape,)
    require(len(jax.tree.leaves(inputs)) > 0, "input_shape", input_shape, _ALLOWED)
    whole = not any(is_shape(each) for each in inputs)
    require(
        batch == 1 or not whole,
        "batch",
        batch,
        "1 where inputs are given with their own examples' axis",
    )
    return tuple(_shapes(each, batch) for each in inputs)


def is_shape(value: Any) -> bool:
    """Whether it is a shape of one example: whole numbers alone."""
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(_is_whole, value))


def typed_shapes(inputs: Any) -> str:
    """Types and shapes as JAX writes them: "float32[1,8,8,3], int32[1,77]"."""
    return ", ".join(
        f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(inputs)
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _shapes(value: Any, batch: int) -> Any:
    if is_shape(value):
        require(min(value) >= 1, "input_shape", tuple(value), _ALLOWED)
        return jax.ShapeDtypeStruct((batch, *map(int, value)), jnp.float32)
    require(not isinstance(value, str | Sequence), "input_shape", value, _ALLOWED)
    structure, leaves = shapes_of(value)
    return jax.tree.unflatten(structure, leaves)
