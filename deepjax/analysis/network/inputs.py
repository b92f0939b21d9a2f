"""The arguments of a network's call, from a batch of any form."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deepjax.analysis.core.losses import LABELS, Batch
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.function import Function
from deepjax.analysis.network.network import (
    Model,
    call_parameters,
    mode_of,
    name_of,
    network_of,
)
from deepjax.errors import InputError


def inputs_of(model: Model, batch: Batch) -> Inputs:
    """The inputs of the network in a batch.

    A tuple (inputs, labels, ...): inputs is one argument, also if it is a dict or a NamedTuple, or
    a tuple of several. A dict or NamedTuple of arrays: "image", and what is named as an argument of
    the network's call, also if it is the name of a label; a single entry beside the label may have
    any name. An array: the input of instruments without a loss. A dict of inputs in place of the
    first element of a tuple is passed by name if the call takes nothing by position.
    Raises InputError for anything else, also for a list of inputs, which is no batch.
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
    if are_inputs_alone(batch):
        raise InputError(
            f"batch is a list of {len(batch)} inputs of like shapes; allowed here: one batch, such "
            "as a tuple (inputs, labels)"
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


def are_inputs_alone(batch: Any) -> bool:
    """Whether it is a list of batches of inputs, rather than a batch [inputs, labels].

    That is, arrays of floats of one shape, also with other numbers of examples.
    """
    if not isinstance(batch, list) or len(batch) < 2:
        return False
    if not all(hasattr(each, "shape") and hasattr(each, "dtype") for each in batch):
        return False
    if not all(jnp.issubdtype(each.dtype, jnp.inexact) for each in batch):
        return False
    shapes = {jnp.shape(each) for each in batch}
    return len(shapes) == 1 or (
        min(map(len, shapes)) >= 2 and len({shape[1:] for shape in shapes}) == 1
    )


def _from_names(model: Model, batch: Mapping[str, Any]) -> Inputs:
    network = network_of(model)
    modes = {name for train in (False, True) for name in mode_of(network, train).kwargs}
    parameters = {
        name: each
        for name, each in call_parameters(network).items()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    named = {name: batch[name] for name in parameters if name in batch}
    rest = {name: value for name, value in batch.items() if name not in LABELS}
    single = [name for name in rest if name == "image" or len(rest) == 1]
    if single and single[0] not in named:
        return Inputs((rest[single[0]],), named)
    inputs = [name for name in parameters if name not in modes]
    # Which arguments of a function are collections is known when it is called.
    required = [] if isinstance(network.module, Function) else inputs
    lacking = [
        name
        for name in required
        if name not in named
        and parameters[name].default is inspect.Parameter.empty
        and parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    if not named or lacking:
        raise InputError(
            f"batch has the keys {sorted(batch)}; allowed: 'image' and 'label'; or the inputs by "
            f"the names of {name_of(model)}'s arguments, which are {', '.join(inputs)}; or "
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
