"""Scores of classes: the outputs that attributions explain."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.losses import Batch, describe_outputs
from deepjax.analysis.core.params import widened
from deepjax.analysis.network.module import Network, apply_module, batch_key, inputs_of
from deepjax.analysis.network.task import Task
from deepjax.errors import InputError, require

Classes = Any
"""One class for all examples, or integers (examples,); None: those of the greatest outputs."""


class BatchScores(NamedTuple):
    """The scores that are explained, for one batch."""

    inputs: Any
    """`Inputs` of the network."""
    classes: Array
    """(examples,); 0 for outputs without an axis of classes."""
    values: Array
    """(examples,)"""
    key: Array


def require_scores(outputs: Any, batch: Batch) -> Array:
    """A loss of 0; raises InputError for outputs without a score for each class."""
    is_floats = isinstance(outputs, jax.Array) and jnp.issubdtype(outputs.dtype, jnp.floating)
    if not is_floats or outputs.ndim not in (1, 2):
        raise InputError(
            f"the network returns {describe_outputs(outputs)}; allowed: floats (examples, classes) "
            "or (examples,), which Network(module, output=...) selects by an index, key or function"
        )
    return jnp.zeros((), jnp.float32)


def scores_of(outputs: Array, classes: Array) -> Array:
    """(examples,): the output of each example's class, or the outputs (examples,) themselves."""
    wide = widened(outputs)
    return wide if wide.ndim == 1 else jnp.take_along_axis(wide, classes[:, None], axis=1)[:, 0]


def sum_of_scores(outputs: Array, batch: Batch) -> Array:
    """Sum over the examples of a batch (inputs, classes), as a loss.

    Its gradient with respect to an example is that of the example's own score.
    """
    return jnp.sum(scores_of(outputs, batch[1]))


def class_scores(task: Task, classes: Classes) -> tuple[list[BatchScores], np.ndarray | None]:
    """(scores by batch, (examples,) classes, or None for outputs without an axis of classes).

    The task was prepared with `require_scores`. Raises InputError for classes that are not
    integers, of another number, or not among the outputs.
    """
    count = task.data.batches
    shape = jax.eval_shape(
        functools.partial(_outputs, model=task.network, train=task.mode.train),
        *(task.variables, task.data.first, task.key),
    ).shape
    given = _given_classes(classes, shape, count)
    found = []
    for index in range(count):
        batch = jax.tree.map(lambda leaf, i=index: leaf[i], task.data.stacked)
        inputs, key = inputs_of(task.network, batch), batch_key(task.key, index, count)
        own = None if given is None else given[index]
        own, values = _scores(
            task.variables, inputs, own, key, model=task.network, train=task.mode.train
        )
        found.append(BatchScores(inputs, own, values, key))
    if len(shape) == 1:
        return found, None
    return found, np.concatenate([each.classes for each in found])


def scores_for(task: Task, inputs: Any, classes: Array, key: Array) -> Array:
    """(examples,): scores of these classes for other inputs."""
    return _scores(task.variables, inputs, classes, key, model=task.network, train=task.mode.train)[
        1
    ]


def _given_classes(classes: Classes, shape: tuple[int, ...], batches: int) -> Array | None:
    """(batches, examples of each)."""
    if classes is None:
        return None
    if len(shape) == 1:
        raise InputError(
            f"classes is {classes!r}; allowed: None, because the outputs {shape} have no axis of "
            "classes"
        )
    size, given = shape[0] * batches, np.asarray(classes)
    require(
        np.issubdtype(given.dtype, np.integer) and given.shape in ((), (size,)),
        "classes",
        f"{given.dtype} {given.shape}",
        f"an integer, or integers ({size},)",
    )
    outside = given[(given < 0) | (given >= shape[1])]
    require(not outside.size, "classes", outside.tolist(), f"0 to {shape[1] - 1}")
    return jnp.asarray(np.broadcast_to(given, (size,)).reshape(batches, -1), jnp.int32)


def _outputs(variables: Any, batch: Batch, key: Array, *, model: Network, train: bool) -> Any:
    return apply_module(model, variables, batch, train, key)[0]


@functools.partial(jax.jit, static_argnames=("model", "train"))
def _scores(
    variables: Any, inputs: Any, classes: Array | None, key: Array, *, model: Network, train: bool
) -> tuple[Array, Array]:
    """(classes, their scores)."""
    outputs = _outputs(variables, (inputs,), key, model=model, train=train)
    if outputs.ndim == 1:
        classes = jnp.zeros(outputs.shape, jnp.int32)
    elif classes is None:
        classes = jnp.argmax(outputs, axis=1).astype(jnp.int32)
    return classes, scores_of(outputs, classes)
