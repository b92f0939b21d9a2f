"""Batches, their labels, and the loss of a classifier."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from deepjax.analysis.core.params import widened
from deepjax.errors import InputError

Batch = Any
"""(inputs, labels), or a dict with "image" and "label"; inputs may be a tuple of arrays. The first axis is the examples'."""
Loss = Callable[[Any, Batch], Array]
"""(what the network returns, batch) -> a scalar, by convention the mean over the examples."""


def labels_of(batch: Batch) -> Any:
    """What the loss compares with."""
    if isinstance(batch, Mapping) and "label" in batch:
        return batch["label"]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    raise InputError(
        "batch has no labels, which this loss compares with; allowed: (inputs, labels), or 'image' and 'label'"
    )


def of_classes(loss: Loss) -> Loss:
    """Mark a loss whose integer labels are classes, 0 up to the last axis of the outputs: `check` then refuses others."""
    loss.of_classes = True  # type: ignore[attr-defined]
    return loss


@of_classes
def cross_entropy(outputs: Array, batch: Batch) -> Array:
    """Mean softmax cross-entropy, float32 (float64 of such outputs).

    outputs: (..., classes); the batch's labels: integers of shape (...).

    Labels outside the classes are refused by instruments; inside `jax.jit`, where they cannot be looked at, they make it NaN.
    """
    labels = labels_of(batch)
    if not isinstance(outputs, jax.Array):
        raise InputError(
            f"the network returns {described(outputs)}; this loss takes one array: choose by Network(..., output=)"
        )
    if outputs.shape[:-1] != jnp.shape(labels):
        raise InputError(
            f"labels have the shape {jnp.shape(labels)}, outputs {outputs.shape}; allowed: labels of {outputs.shape[:-1]}"
        )
    logarithms = jax.nn.log_softmax(widened(outputs))
    if (
        jnp.result_type(labels).itemsize < 4
    ):  # in 8 bits a number of classes such as 256 would wrap around
        labels = labels.astype(jnp.int32)
    inside = (labels >= 0) & (
        labels < outputs.shape[-1]
    )  # else -1 would be the last class, and others have no gradient
    taken = jnp.take_along_axis(logarithms, jnp.where(inside, labels, 0)[..., None], axis=-1)[
        ..., 0
    ]
    return -jnp.mean(taken * jnp.where(inside, 1.0, jnp.nan).astype(taken.dtype))


def require_classes(labels: Any, classes: int) -> None:
    """Raise InputError where a label is not 0 to classes - 1; nothing inside `jax.jit`, where labels are not known."""
    if isinstance(labels, Tracer | jax.ShapeDtypeStruct):
        return
    whole = not isinstance(labels, jax.Array) or labels.is_fully_addressable
    values = (
        np.asarray(labels)
        if whole
        else np.concatenate([np.ravel(each.data) for each in labels.addressable_shards])
    )
    outside = values[(values < 0) | (values >= classes)]
    if outside.size:
        shown = ", ".join(map(str, np.unique(outside)[:5].tolist()))
        raise InputError(
            f"{outside.size} of {values.size} labels are outside the classes ({shown}); "
            f"allowed: 0 to {classes - 1}, for the {classes} outputs of the network"
        )


def described(outputs: Any) -> str:
    """What a network returns, in a few words."""
    if isinstance(outputs, Mapping):
        return f"a dict with {', '.join(map(repr, outputs))}"
    if hasattr(outputs, "_fields"):
        return f"a {type(outputs).__name__} of {', '.join(outputs._fields)}"
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    return (
        f"an array of shape {outputs.shape}"
        if hasattr(outputs, "shape")
        else f"a {type(outputs).__name__}"
    )
