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
"""(inputs, labels), or a dict of the inputs by name and the label; `core/inputs.py` has the rules.

The first axis is that of the examples, where an instrument looks at examples.
"""
LABELS = ("label", "labels", "target", "targets", "y")
"""Names of the labels in a batch that is a dict or a NamedTuple; the first that it has counts."""
Loss = Callable[[Any, Batch], Array]
"""(outputs of the network, batch) -> scalar, by convention the mean over the examples."""


def labels_or_none(batch: Batch) -> Any:
    """The labels of a batch, or None."""
    try:
        return labels_of(batch)
    except InputError:
        return None


def labels_of(batch: Batch) -> Any:
    """The labels of a batch; raises InputError where it has none."""
    if hasattr(batch, "_asdict"):
        batch = batch._asdict()
    found = [batch[name] for name in LABELS if name in batch] if isinstance(batch, Mapping) else []
    if found:
        return found[0]
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    raise InputError(
        "batch has no labels, which a loss such as softmax cross-entropy needs; allowed: "
        f"(inputs, labels), or a dict with one of {', '.join(map(repr, LABELS))}"
    )


def with_labels(batch: Batch, labels: Any) -> Batch:
    """The batch with other labels."""
    if hasattr(batch, "_replace"):
        name = next(name for name in LABELS if name in batch._fields)
        return batch._replace(**{name: labels})
    if isinstance(batch, Mapping):
        name = next(name for name in LABELS if name in batch)
        return {**batch, name: labels}
    return (batch[0], labels, *batch[2:])


def takes_class_labels(loss: Loss) -> Loss:
    """Mark a loss whose integer labels are classes, from 0 to the size of the last output axis.

    `validate_inputs` refuses labels outside the classes.
    """
    loss.takes_class_labels = True  # type: ignore[attr-defined]
    return loss


@takes_class_labels
def cross_entropy(outputs: Array, batch: Batch) -> Array:
    """Mean softmax cross-entropy, float32 (float64 of such outputs).

    outputs: (..., classes); the batch's labels: integers of shape (...).

    Instruments refuse labels outside the classes; inside `jax.jit` such labels make the loss NaN.
    """
    labels = labels_of(batch)
    if not isinstance(outputs, jax.Array):
        raise InputError(
            f"the network returns {describe_outputs(outputs)}; this loss takes one array: choose "
            "by Network(..., output=)"
        )
    if outputs.shape[:-1] != jnp.shape(labels):
        raise InputError(
            f"labels have the shape {jnp.shape(labels)}, outputs {outputs.shape}; allowed: labels "
            f"of {outputs.shape[:-1]}"
        )
    logarithms = jax.nn.log_softmax(widened(outputs))
    # In 8 bits a number of classes such as 256 would wrap around.
    if jnp.result_type(labels).itemsize < 4:
        labels = labels.astype(jnp.int32)
    # Without this -1 would be the last class, and labels beyond it would have no gradient.
    inside = (labels >= 0) & (labels < outputs.shape[-1])
    indices = jnp.where(inside, labels, 0)[..., None]
    taken = jnp.take_along_axis(logarithms, indices, axis=-1)[..., 0]
    return -jnp.mean(taken * jnp.where(inside, 1.0, jnp.nan).astype(taken.dtype))


def require_classes(labels: Any, classes: int) -> None:
    """Raise InputError for labels outside 0 to classes - 1; no check inside `jax.jit`."""
    if isinstance(labels, Tracer | jax.ShapeDtypeStruct):
        return
    if not isinstance(labels, jax.Array) or labels.is_fully_addressable:
        values = np.asarray(labels)
    else:
        values = np.concatenate([np.ravel(each.data) for each in labels.addressable_shards])
    outside = values[(values < 0) | (values >= classes)]
    if outside.size:
        shown = ", ".join(map(str, np.unique(outside)[:5].tolist()))
        raise InputError(
            f"{outside.size} of {values.size} labels are outside the classes ({shown}); "
            f"allowed: 0 to {classes - 1}, for the {classes} outputs of the network"
        )


def describe_outputs(outputs: Any) -> str:
    """A short description of what a network returns."""
    if isinstance(outputs, Mapping):
        return f"a dict with {', '.join(map(repr, outputs))}"
    if hasattr(outputs, "_fields"):
        return f"a {type(outputs).__name__} of {', '.join(outputs._fields)}"
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    if hasattr(outputs, "shape"):
        return f"an array of shape {outputs.shape}"
    return f"a {type(outputs).__name__}"
