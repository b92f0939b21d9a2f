"""One way to run any linen module on a batch, whatever its switches are called and whatever state it keeps."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.errors import InputError

Batch = Any
"""(inputs, labels), or a dict with "image" and "label"; inputs may be a tuple of arrays. The first axis is the examples'."""
Loss = Callable[[Any, Batch], Array]
"""(what the network returns, batch) -> a scalar, by convention the mean over the examples."""
Rngs = Mapping[str, Array] | None

_TRAINS = ("train", "training", "is_training")
_EVALUATES = ("deterministic", "use_running_average")


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
    return batch["label"] if isinstance(batch, Mapping) else batch[1]


def cross_entropy(outputs: Array, batch: Batch) -> Array:
    """Mean softmax cross-entropy in float32. outputs: (..., classes); the batch's labels: integers of shape (...)."""
    labels = labels_of(batch)
    if outputs.shape[:-1] != labels.shape:
        raise InputError(f"labels have the shape {labels.shape}, outputs {outputs.shape}; allowed: labels of {outputs.shape[:-1]}")
    logarithms = jax.nn.log_softmax(outputs.astype(jnp.float32))
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
    switches: dict[str, Any] = _switches(model, train)
    return model.apply(variables, *inputs_of(batch), rngs=rngs, mutable=[*mutable, *sow], **switches)


def loss_of(model: nn.Module, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None) -> Array:
    """The scalar loss; raises InputError where it is none, or where the batch does not fit the network."""
    outputs, _ = run(model, variables, batch, train, rngs)
    value = loss(outputs, batch)
    if jnp.shape(value) != ():
        raise InputError(f"loss returned the shape {jnp.shape(value)}; allowed: a scalar, such as the mean over the examples")
    return value


def check(model: nn.Module, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None) -> None:
    """Raise InputError, in one line, where the network cannot take the batch or the loss is not a scalar; nothing is computed."""
    if "params" not in variables:
        raise InputError(f"variables have the collections {sorted(variables)}; 'params' is missing")
    try:
        jax.eval_shape(lambda variables, batch, rngs: loss_of(model, variables, batch, loss, train, rngs), variables, batch, rngs)
    except InputError:
        raise
    except Exception as error:  # whatever linen, JAX or the network itself raises of shapes, collections or dtypes
        shapes = ", ".join(f"{jnp.shape(value)}" for value in inputs_of(batch))
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"{type(model).__name__} cannot take a batch with inputs of shape {shapes}: {reason}") from error


def has_batch_norm(variables: Any) -> bool:
    """Whether the network keeps running statistics."""
    return bool(jax.tree.leaves(dict(variables).get("batch_stats", {})))


def _switches(model: nn.Module, train: bool) -> dict[str, bool]:
    names = inspect.signature(type(model).__call__).parameters
    return {name: train for name in _TRAINS if name in names} | {name: not train for name in _EVALUATES if name in names}
