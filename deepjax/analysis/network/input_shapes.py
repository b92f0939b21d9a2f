"""Shapes and dtypes of a network's inputs, from the shape of one example or from inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.module import Model, name_of, reason, shapes_of
from deepjax.analysis.network.network import call_parameters
from deepjax.errors import InputError, require

InputShape = Any
"""One input, a tuple of inputs, or a dict of inputs by the names of the call's arguments, each

- the shape of one example, such as (height, width, channels): float32, without batch axis;
- a `jax.ShapeDtypeStruct`, an array, or a tree of them, such as a dict or a NamedTuple: with batch
  axis.
"""
_ALLOWED = (
    "(height, width, channels) of one image, each from 1 up; or a jax.ShapeDtypeStruct or array as "
    "the network gets it, such as jax.ShapeDtypeStruct((1, 128), jnp.int32) for tokens; or a tuple "
    "of these for several inputs, or a dict by the names of the call's arguments"
)


def input_shapes(model: Model, input_shape: InputShape, examples: int = 1) -> Inputs:
    """Shapes and dtypes of the arguments of the network's call.

    examples: the batch size, for shapes of one example. Raises InputError for anything else, and
    for another batch size where no shape of one example is given.
    """
    require(_is_integer(examples) and examples >= 1, "examples", examples, "an integer from 1 up")
    given = _arguments(model, input_shape)
    values = (*given.args, *given.kwargs.values())
    require(len(jax.tree.leaves(values)) > 0, "input_shape", input_shape, _ALLOWED)
    have_batch_axis = not any(map(is_shape, values))
    require(
        examples == 1 or not have_batch_axis,
        "examples",
        examples,
        "1 where inputs are given with their own examples' axis",
    )
    return Inputs(
        tuple(_shapes(each, examples) for each in given.args),
        {name: _shapes(each, examples) for name, each in given.kwargs.items()},
    )


def _arguments(model: Model, input_shape: InputShape) -> Inputs:
    parameters = call_parameters(model)
    if isinstance(input_shape, Mapping) and set(input_shape) <= set(parameters):
        rest = dict(input_shape)
        positional = [
            rest.pop(name)
            for name, each in parameters.items()
            if name in rest and each.kind is each.POSITIONAL_ONLY
        ]
        return Inputs(tuple(positional), rest)
    several = (
        isinstance(input_shape, tuple | list)
        and not is_shape(input_shape)
        and not hasattr(input_shape, "_asdict")  # a NamedTuple is one input, as in a batch
    )
    return Inputs(tuple(input_shape) if several else (input_shape,), {})


def is_shape(value: Any) -> bool:
    """Whether it is the shape of one example: a sequence of integers."""
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(_is_integer, value))


def typed_shapes(inputs: Any) -> str:
    """Types and shapes as JAX writes them: "float32[1,8,8,3], int32[1,77]"."""
    return ", ".join(
        f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(inputs)
    )


def misfit_error(model: Model, inputs: Inputs, error: Exception) -> InputError:
    """The error for inputs that a network cannot take, from what it says itself."""
    return InputError(
        f"input_shape is {typed_shapes(inputs)}, batch included; allowed: what "
        f"{name_of(model)} takes, which says: {reason(error).rstrip('.')}; for other dtypes "
        "and for several inputs give a jax.ShapeDtypeStruct each"
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _shapes(value: Any, examples: int) -> Any:
    if is_shape(value):
        require(min(value) >= 1, "input_shape", tuple(value), _ALLOWED)
        return jax.ShapeDtypeStruct((examples, *map(int, value)), jnp.float32)
    is_tree = not isinstance(value, str | Sequence) or hasattr(value, "_asdict")
    require(is_tree, "input_shape", value, _ALLOWED)
    structure, leaves = shapes_of(value)
    return jax.tree.unflatten(structure, leaves)
