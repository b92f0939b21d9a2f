"""The arguments of a network's call, from a batch of any form."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deepjax.analysis.core.losses import LABELS, Batch
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.network import Model, call_parameters, name_of
from deepjax.errors import InputError


def inputs_of(model: Model, batch: Batch) -> Inputs:
    """The inputs of the network in a batch.

    A tuple (inputs, labels, ...): inputs is one argument, also if it is a dict or a NamedTuple, or
    a tuple of several. A dict or NamedTuple of arrays: "image", and what is named as an argument of
    the network's call; a single entry beside the label may have any name. An array: the input of
    instruments without a loss. A dict of inputs in place of the first element of a tuple is passed
    by name if the call takes nothing by position.
    Raises InputError for anything else.
    """
    if hasattr(batch, "_asdict") and not isinstance(batch, Inputs):
        batch = batch._asdict()
    if isinstance(batch, Mapping):
        return _from_names(model, batch)
    if hasattr(batch, "shape"):
        return Inputs((batch,), {})
    if not isinstance(batch, tuple | list) or len(batch) < 1:
        raise InputError(
            f"batch is a {type(batch).__name__}; allowed: a tuple (inputs, labels), or a dict with "
            "'image' and 'label'"
        )
    first = batch[0]
    if isinstance(first, Inputs):
        return first
    if isinstance(first, tuple | list) and not hasattr(first, "_asdict"):
        return Inputs(tuple(first), {})
    if isinstance(first, Mapping) and not _takes_positions(model):
        return Inputs((), dict(first))
    return Inputs((first,), {})


def floats_of(inputs: Inputs) -> list[Any]:
    """The arrays of floats among the inputs, which have gradients."""
    return [each for each in jax.tree.leaves(inputs) if is_floating(each)]


def with_floats(inputs: Inputs, floats: list[Any]) -> Inputs:
    """The inputs with other arrays in place of `floats_of`."""
    rest = iter(floats)
    return jax.tree.map(lambda each: next(rest) if is_floating(each) else each, inputs)


def is_floating(value: Any) -> bool:
    """Whether it is an array of real floats."""
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.floating))


def _from_names(model: Model, batch: Mapping[str, Any]) -> Inputs:
    parameters = call_parameters(model)
    rest = {name: value for name, value in batch.items() if name not in LABELS}
    named = {name: rest[name] for name in parameters if name in rest}
    if "image" in rest and "image" not in named:
        return Inputs((rest["image"],), named)
    if not named and len(rest) == 1:
        return Inputs(tuple(rest.values()), {})
    required = [
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, _EITHER)
    ]
    if not named or not set(required) <= set(named):
        raise InputError(
            f"batch has the keys {sorted(batch)}; allowed: 'image' and 'label'; or the inputs by "
            f"the names of {name_of(model)}'s arguments, which are {', '.join(parameters)}; or "
            "(inputs, labels), also with one input that is itself a dict or NamedTuple"
        )
    by_position = [name for name in named if parameters[name].kind is _POSITION]
    return Inputs(
        tuple(named[name] for name in by_position),
        {name: value for name, value in named.items() if name not in by_position},
    )


_POSITION = inspect.Parameter.POSITIONAL_ONLY
_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _takes_positions(model: Model) -> bool:
    kinds = (_POSITION, _EITHER, inspect.Parameter.VAR_POSITIONAL)
    return any(each.kind in kinds for each in call_parameters(model).values())
