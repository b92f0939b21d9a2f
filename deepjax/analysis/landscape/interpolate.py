"""Loss and accuracy at weighted sums of parameter trees: what lines and planes are made of."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from deepjax.analysis.core.batch import Batches, stack
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    apply_module,
    base_key,
    has_batch_norm,
    validate_inputs,
)
from deepjax.analysis.core.options import BatchStatistics, Progress
from deepjax.analysis.core.params import (
    check_like,
    from_real,
    real_pairs,
    replace_leaves,
    sum_dtype,
    widened,
)
from deepjax.errors import require

LOG_RATIO = 20
"""Losses whose maximum is this many times their minimum are plotted on a logarithmic scale."""


@dataclasses.dataclass(frozen=True)
class LossPoints:
    """A network, data and loss, and how many points to evaluate at once."""

    model: nn.Module
    loss: Loss
    bn: BatchStatistics
    batches: Any
    """Stacked along a leading axis."""
    examples: int
    has_batch_norm: bool
    chunk: int
    progress: Progress


def prepare_interpolation(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    loss: Loss,
    bn: BatchStatistics,
    chunk: int,
    progress: Progress,
) -> LossPoints:
    """Validate the arguments; raises InputError before anything is computed."""
    require(bn in ("running", "batch"), "bn", bn, "'running', 'batch'")
    require(isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of points, 1 or more")
    data = stack(batch)
    validate_inputs(model, variables, data.first, loss, bn == "batch", every=data.stacked)
    has_norm = has_batch_norm(variables)
    return LossPoints(model, loss, bn, data.stacked, data.examples, has_norm, chunk, progress)


def with_directions(params: Any, **directions: Any) -> tuple[dict[str, Any], ...]:
    """The parameters and the directions as trees of one structure, under "params".

    Raises InputError, naming the direction, where one is not a tree like the parameters.
    """
    trees = {"": params, **directions}.items()
    return tuple(
        {"params": replace_leaves(params, check_like(name, tree, params))} for name, tree in trees
    )


def evaluate(
    task: LossPoints, variables: Any, trees: Any, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """(points,) losses, and accuracies or None, where the variables are weighted sums of trees.

    trees: dicts of collections, of one structure. weights: (points, trees).
    A loop on the host over chunks of points, so that progress can be reported.
    """
    points, chunk = len(weights), min(task.chunk, len(weights))
    padded = np.pad(weights, ((0, -points % chunk), (0, 0)), mode="edge")
    padded = padded.astype(sum_dtype(*jax.tree.leaves(trees[0])))
    options: dict[str, Any] = {"model": task.model, "loss": task.loss, "train": task.bn == "batch"}
    found = []
    for start in range(0, len(padded), chunk):
        part = _losses(variables, trees, padded[start : start + chunk], task.batches, **options)
        found.append(part)
        if task.progress:
            jax.block_until_ready(part)
            task.progress(min(start + chunk, points), points)
    losses, accuracies = zip(*jax.device_get(found), strict=True)
    if accuracies[0] is None:
        return np.concatenate(losses)[:points].astype(float), None
    return (
        np.concatenate(losses)[:points].astype(float),
        np.concatenate(accuracies)[:points].astype(float),
    )


@functools.partial(jax.jit, static_argnames=("model", "loss", "train"))
def _losses(
    variables: Any,
    trees: tuple[Any, ...],
    weights: Array,
    batches: Any,
    *,
    model: nn.Module,
    loss: Loss,
    train: bool,
) -> tuple[Array, Array | None]:
    """(points,) mean losses, and accuracies or None. weights: (points, trees)."""
    count = jax.tree.leaves(batches)[0].shape[0]

    def at(weights: Array) -> tuple[Array, Array | None]:
        moved = {**variables, **interpolate(trees, weights)}

        def on(part: Any) -> tuple[Array, Array | None]:
            index, batch = part
            outputs, _ = apply_module(model, moved, batch, train, base_key(model, index))
            return widened(loss(outputs, batch)), _accuracy(outputs, batch)

        return jax.tree.map(jnp.mean, lax.map(on, (jnp.arange(count), batches)))

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
    labels = _labels(batch)
    if not isinstance(outputs, Array) or not isinstance(labels, Array):
        return None
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return None
    if outputs.ndim < 1 or outputs.shape[:-1] != labels.shape:
        return None
    hits = jnp.argmax(outputs, axis=-1).astype(labels.dtype) == labels
    return jnp.mean(hits.astype(jnp.float32))


def _labels(batch: Batch) -> Any:
    if isinstance(batch, Mapping):
        return batch.get("label")
    return batch[1] if len(batch) > 1 else None


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
