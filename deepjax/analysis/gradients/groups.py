"""Gradients of single examples and of ghost batches: their data, and one of them."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from deepjax.analysis.core.layers import LayerNames, selected_leaves
from deepjax.analysis.core.params import Path, real_leaves, replace_leaves, restored, widened
from deepjax.analysis.network.batch import batch_size, split_examples
from deepjax.analysis.network.module import Batch, Loss, Model, loss_of
from deepjax.analysis.network.task import Task
from deepjax.errors import InputError


def gradient_groups(task: Task) -> Any:
    """The data of each gradient along a leading axis: ghost batches, or single examples.

    Raises InputError where an example has no gradient of its own.
    """
    if task.mode.ghost is not None:
        return task.data.stacked
    if task.mode.train and task.has_batch_norm:
        raise InputError(
            f"mode is {task.mode!r}; allowed: EVAL or Ghost(k), because under batch statistics an "
            "example has no gradient of its own"
        )
    size = batch_size(task.data.first)
    # By vmap, for which a scalar of each batch is a scalar.
    singles = jax.vmap(lambda batch: split_examples(batch, size, 1))(task.data.stacked)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), singles)


def group_gradient(
    model: Model,
    variables: Any,
    batch: Batch,
    key: Array,
    *,
    loss: Loss,
    train: bool,
    layers: LayerNames,
) -> dict[Path, Array]:
    """Gradient of a batch's loss with respect to these layers' parameters, as `real_leaves`."""
    params = variables["params"]
    block = selected_leaves(params, layers)

    def value(view: dict[Path, Array]) -> Array:
        given = {**variables, "params": replace_leaves(params, restored(view, block))}
        return widened(loss_of(model, given, batch, loss, train, key))

    return jax.grad(value)(real_leaves(block))


def sum_squares(leaves: Iterable[Array], first: int = 0) -> Array:
    """Sum of squares over the leaves and all axes from the first on."""
    sums = [jnp.sum(jnp.square(leaf), axis=tuple(range(first, leaf.ndim))) for leaf in leaves]
    return functools.reduce(jnp.add, sums)
