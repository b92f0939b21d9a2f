"""Loss and accuracy at weighted sums of parameter trees: what lines and planes are made of."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from deepjax.analysis.core.losses import labels_or_none
from deepjax.analysis.core.mode import Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import (
    check_like,
    from_real,
    real_pairs,
    replace_leaves,
    sum_dtype,
    widened,
)
from deepjax.analysis.network.batch import Batches, mean_over_batches
from deepjax.analysis.network.module import Batch, Loss, Model, apply_module
from deepjax.analysis.network.task import Task, make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require

LOG_RATIO = 20
"""Losses whose maximum is this many times their minimum are plotted on a logarithmic scale."""


@dataclasses.dataclass(frozen=True)
class LossPoints:
    """A network, data and loss, and how many points to evaluate at once."""

    task: Task
    loss: Loss
    chunk: int
    progress: Progress


def prepare_interpolation(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss,
    mode: Mode,
    key: Array | None,
    chunk: int,
    progress: Progress,
) -> LossPoints:
    """Validate the arguments; raises InputError before anything is computed."""
    require(isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of points, 1 or more")
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    return LossPoints(task, loss, chunk, progress)


def with_directions(params: Any, **directions: Any) -> tuple[dict[str, Any], ...]:
    """The parameters and the directions as trees of one structure, under "params".

    Raises InputError, naming the direction, where one is not a tree like the parameters.
    """
    trees = {"": params, **directions}.items()
    return tuple(
        {"params": replace_leaves(params, check_like(name, tree, params))} for name, tree in trees
    )


def evaluate(
    points: LossPoints, trees: Any, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """(points,) losses, and accuracies or None, where the variables are weighted sums of trees.

    trees: dicts of collections, of one structure. weights: (points, trees).
    A loop on the host over chunks of points, so that progress can be reported.
    """
    task, count = points.task, len(weights)
    chunk = min(points.chunk, count)
    padded = np.pad(weights, ((0, -count % chunk), (0, 0)), mode="edge")
    padded = padded.astype(sum_dtype(*jax.tree.leaves(trees[0])))
    options: dict[str, Any] = {"model": task.network, "loss": points.loss, "train": task.mode.train}
    found = []
    for start in range(0, len(padded), chunk):
        part = _losses(
            task.variables,
            trees,
            padded[start : start + chunk],
            task.data.stacked,
            task.key,
            **options,
        )
        found.append(part)
        if points.progress:
            jax.block_until_ready(part)
            points.progress(min(start + chunk, count), count)
    losses, accuracies = zip(*jax.device_get(found), strict=True)
    losses = np.concatenate(losses)[:count].astype(float)
    if accuracies[0] is None:
        return losses, None
    return losses, np.concatenate(accuracies)[:count].astype(float)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train"))
@canonicalize_conv_layouts
def _losses(
    variables: Any,
    trees: tuple[Any, ...],
    weights: Array,
    stacked: Any,
    key: Array,
    *,
    model: Model,
    loss: Loss,
    train: bool,
) -> tuple[Array, Array | None]:
    """(points,) mean losses, and accuracies or None. weights: (points, trees)."""

    def at(weights: Array) -> tuple[Array, Array | None]:
        moved = {**variables, **interpolate(trees, weights)}

        def on(key: Array, batch: Batch) -> tuple[Array, Array | None]:
            outputs, _ = apply_module(model, moved, batch, train, key)
            return widened(loss(outputs, batch)), _accuracy(outputs, batch)

        return mean_over_batches(on, stacked, key)

    return lax.map(at, weights) if weights.shape[0] == 1 else jax.vmap(at)(weights)


def interpolate(trees: tuple[Any, ...], weights: Array) -> Any:
    """The weighted sum of trees of one structure, in the dtypes of the first.

    weights: (trees,), in the dtype of the sum. Leaves that are not floats are the first tree's.
    """
    return jax.tree.map(lambda *leaves: _weighted_sum(weights, leaves), *trees)


def _weighted_sum(weights: Array, leaves: tuple[Array, ...]) -> Array:
    first = leaves[0]
    if not jnp.issubdtype(first.dtype, jnp.inexact):
        return first
    terms = [
        weight * real_pairs(leaf).astype(weights.dtype)
        for weight, leaf in zip(weights, leaves, strict=True)
    ]
    return from_real(functools.reduce(jnp.add, terms), first).astype(first.dtype)


def _accuracy(outputs: Any, batch: Batch) -> Array | None:
    """None unless labels are integers, and outputs one number per class."""
    labels = labels_or_none(batch)
    if not isinstance(outputs, Array) or not isinstance(labels, Array):
        return None
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return None
    if outputs.ndim < 1 or outputs.shape[:-1] != labels.shape:
        return None
    predicted = jnp.argmax(outputs, axis=-1)
    # As the type of the prediction: in 8 bits class 256 would be class 0.
    return jnp.mean((predicted == labels.astype(predicted.dtype)).astype(jnp.float32))


def validate_points(name: str, given: Any) -> np.ndarray:
    """The points as an array; raises InputError unless they are two or more finite numbers."""
    points = np.asarray(given, float)
    fits = points.ndim == 1 and len(points) >= 2 and np.isfinite(points).all()
    require(bool(fits), name, f"of shape {points.shape}", "two or more finite numbers in one row")
    return points


def finite_or_nan(values: np.ndarray) -> np.ndarray:
    """The values, with NaN for infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def needs_log_scale(values: np.ndarray) -> bool:
    """Whether the finite values are positive and their range is wide."""
    known = values[np.isfinite(values)]
    return len(known) > 0 and known.min() > 0 and known.max() > LOG_RATIO * known.min()
