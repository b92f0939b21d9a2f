"""One way to run any linen module on a batch, whatever its switches are called and whatever state it keeps."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jax import Array

from deepjax.analysis.params import widened
from deepjax.errors import InputError

Batch = Any
"""(inputs, labels), or a dict with "image" and "label"; inputs may be a tuple of arrays. The first axis is the examples'."""
Loss = Callable[[Any, Batch], Array]
"""(what the network returns, batch) -> a scalar, by convention the mean over the examples."""
Rngs = Mapping[str, Array] | None

_TRAINS = ("train", "training", "is_training")
_EVALUATES = ("deterministic", "use_running_average")


def hashable(model: nn.Module) -> nn.Module:
    """The same network as a key of what is compiled: tuples for the lists, and frozen dicts for the dicts, among its fields.

    Raises InputError, naming the field, where one cannot be a key even so, such as an array.
    """
    try:
        hash(model)
        return model
    except TypeError:
        names = [field.name for field in dataclasses.fields(model) if field.init and field.name not in ("parent", "name")]
    fields = {name: _frozen(getattr(model, name)) for name in names}
    for name, value in fields.items():
        try:
            hash(value)
        except TypeError as error:
            given = f"is a {type(value).__name__}"
            raise InputError(
                f"field {name} of {type(model).__name__} {given}; allowed: what can be hashed, to compile once"
            ) from error
    return model.clone(**fields)


def _frozen(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return hashable(value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(_frozen(each) for each in value)
    if isinstance(value, Mapping):
        return FrozenDict({name: _frozen(each) for name, each in value.items()})
    return value


def initialise(model: nn.Module, inputs: Any, key: Array | None = None) -> Any:
    """The variables of a fresh network, in evaluation where its call must be told; also of shapes, under `jax.eval_shape`."""
    key = jax.random.key(0) if key is None else key
    told: dict[str, Any] = demanded_switches(model)
    return model.init({"params": key, "dropout": key}, inputs, **told)


def drawn(model: nn.Module, key: Array, shape: tuple[int, ...]) -> dict[str, Any]:
    """A fresh network's "params", and its "batch_stats" where it has them, for one float32 array of this shape, batch included.

    One program, compiled once for a network and shape, that persistent caches keep; what parameters do not depend on is not in it.
    Drawn operation by operation, GoogLeNet is 600 programs, each too small to keep: 16 s in every process, against 7 s and then 1.
    """
    try:
        model = hashable(model)
    except InputError:  # a field, such as an array, that cannot be a key: compiled at every call
        return jax.jit(functools.partial(_variables, model, shape=shape))(key)
    return _drawn(model, key, tuple(shape))


def _variables(model: nn.Module, key: Array, shape: tuple[int, ...]) -> dict[str, Any]:
    variables = initialise(model, jnp.zeros(shape), key)
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


_drawn = jax.jit(_variables, static_argnums=(0, 2))


def inputs_of(batch: Batch) -> tuple[Any, ...]:
    """The arguments of the network's call."""
    if isinstance(batch, Mapping):
        if "image" not in batch:
            raise InputError(f"batch has the keys {sorted(batch)}; allowed: 'image' and 'label', or a tuple (inputs, labels)")
        return (batch["image"],)
    if not isinstance(batch, tuple | list) or len(batch) < 1:
        raise InputError(
            f"batch is a {type(batch).__name__}; allowed: a tuple (inputs, labels), or a dict with 'image' and 'label'"
        )
    return tuple(batch[0]) if isinstance(batch[0], tuple | list) else (batch[0],)


def labels_of(batch: Batch) -> Any:
    """What the loss compares with."""
    if isinstance(batch, Mapping) and "label" in batch:
        return batch["label"]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    raise InputError("batch has no labels, which this loss compares with; allowed: (inputs, labels), or 'image' and 'label'")


def cross_entropy(outputs: Array, batch: Batch) -> Array:
    """Mean softmax cross-entropy, float32 (float64 of such outputs). outputs: (..., classes); labels: integers of shape (...)."""
    labels = labels_of(batch)
    if outputs.shape[:-1] != labels.shape:
        raise InputError(f"labels have the shape {labels.shape}, outputs {outputs.shape}; allowed: labels of {outputs.shape[:-1]}")
    logarithms = jax.nn.log_softmax(widened(outputs))
    return -jnp.mean(jnp.take_along_axis(logarithms, labels[..., None], axis=-1))


def run(
    model: nn.Module, variables: Any, batch: Batch, train: bool, rngs: Rngs = None, sow: tuple[str, ...] = ()
) -> tuple[Any, Any]:
    """(outputs, collections that changed) of the module's call.

    `train` goes to the call's switch by whichever of its usual names it has (train, training, is_training; deterministic,
    use_running_average), and makes all state mutable: batch norm then normalises by the batch. rngs: default dropout from key 0.
    """
    variables = dict(variables)
    mutable = [name for name in variables if name != "params"] if train else []
    rngs = {"dropout": jax.random.key(0)} if rngs is None else dict(rngs)
    told: dict[str, Any] = switches(model, train)
    return model.apply(variables, *inputs_of(batch), rngs=rngs, mutable=[*mutable, *sow], **told)


def loss_of(model: nn.Module, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None) -> Array:
    """The scalar loss; raises InputError where it is none, or where the batch does not fit the network."""
    outputs, _ = run(model, variables, batch, train, rngs)
    value = loss(outputs, batch)
    if jnp.shape(value) != ():
        raise InputError(f"loss returned the shape {jnp.shape(value)}; allowed: a scalar, such as the mean over the examples")
    return value


def check(model: nn.Module, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None) -> None:
    """Raise InputError, in one line, where the network cannot take the batch or the loss is not a scalar; nothing is computed.

    The answer is kept for the next call with such shapes.
    """
    if "params" not in variables:
        raise InputError(f"variables have the collections {sorted(variables)}; 'params' is missing")
    inputs_of(batch)
    _check(hashable(model), loss, train, *shapes_of((variables, batch, rngs)))


def shapes_of(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """(structure, shapes of the leaves): a key of what is compiled or traced. Raises InputError for a leaf that is no array."""
    leaves, structure = jax.tree.flatten(tree)
    try:
        return structure, tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    except TypeError as error:
        wrong = sorted({type(leaf).__name__ for leaf in leaves if not hasattr(leaf, "dtype")})
        raise InputError(f"variables or batch hold a {', '.join(wrong)}; allowed: arrays") from error


@functools.lru_cache(maxsize=64)
def _check(model: nn.Module, loss: Loss, train: bool, structure: Any, shapes: tuple[Any, ...]) -> None:
    variables, batch, rngs = jax.tree.unflatten(structure, shapes)
    try:
        jax.eval_shape(lambda *given: loss_of(model, given[0], given[1], loss, train, given[2]), variables, batch, rngs)
    except InputError:
        raise
    except Exception as error:  # whatever linen, JAX or the network itself raises of shapes, collections or dtypes
        given = ", ".join(f"{jnp.shape(value)}" for value in inputs_of(batch))
        raise InputError(f"{type(model).__name__} cannot take a batch with inputs of shape {given}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an error says in its first line, or what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def has_batch_norm(variables: Any) -> bool:
    """Whether the network keeps running statistics."""
    return bool(jax.tree.leaves(dict(variables).get("batch_stats", {})))


def switches(model: nn.Module, train: bool) -> dict[str, bool]:
    """The training switches that the network's call knows, set."""
    names = inspect.signature(type(model).__call__).parameters
    return {name: train for name in _TRAINS if name in names} | {name: not train for name in _EVALUATES if name in names}


def demanded_switches(model: nn.Module) -> dict[str, bool]:
    """Those without which the call fails, set to evaluation."""
    names = inspect.signature(type(model).__call__).parameters
    return {name: value for name, value in switches(model, False).items() if names[name].default is inspect.Parameter.empty}
