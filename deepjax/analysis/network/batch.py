"""Batches: one or several, ghost batches, and their number of examples."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from deepjax.analysis.core.losses import Batch
from deepjax.analysis.core.mode import Mode
from deepjax.analysis.network.inputs import are_inputs_alone
from deepjax.analysis.network.run import batch_key
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError, require

Batches = Batch | list[Batch]
"""One batch, or a list of batches of one size, over which losses are averaged.

Batch statistics are those of each batch.
"""


@dataclasses.dataclass(frozen=True)
class BatchStack:
    """Batches of one size along a leading axis."""

    first: Batch
    stacked: Any
    examples: int | None
    """In all batches; None where they are not along the first axis, as in a graph."""
    batches: int
    """Ghost batches, in this mode."""


def stack(batch: Batches, mode: Mode) -> BatchStack:
    """Stack one or several batches, in the mode `Ghost` their ghost batches.

    Raises InputError where the sizes of the batches differ, or ghost batches do not divide them,
    and for what is not made of arrays.
    """
    _require_arrays(batch)
    batches = list_of(batch)
    shapes = {str(jax.tree.map(jnp.shape, each)) for each in batches}
    require(
        len(shapes) == 1,
        "batch",
        f"a list of batches of the shapes {', '.join(sorted(shapes))}",
        "batches of one size",
    )
    has_arrays = len(jax.tree.leaves(batches[0])) > 0
    require(has_arrays, "batch", "without arrays", "a batch, or a list of batches")
    if mode.ghost is None:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    else:
        groups = [_ghosts(each, mode.ghost) for each in batches]
        stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)
    examples = count_examples(batches[0])
    return BatchStack(
        batches[0] if mode.ghost is None else jax.tree.map(lambda leaf: leaf[0], stacked),
        stacked,
        None if examples is None else examples * len(batches),
        jax.tree.leaves(stacked)[0].shape[0],
    )


def mean_over_batches(function: Callable[[Array, Batch], Any], stacked: Any, key: Array) -> Any:
    """The mean of `function(key, batch)`, a tree of arrays, one batch at a time.

    To differentiate the mean loss instead would keep the activations of every batch.
    """
    count = jax.tree.leaves(stacked)[0].shape[0]
    if count == 1:
        return function(key, jax.tree.map(lambda leaf: leaf[0], stacked))

    def step(total: Any, part: Any) -> tuple[Any, None]:
        index, batch = part
        found = function(batch_key(key, index, count), batch)
        return jax.tree.map(jnp.add, total, found), None

    def summed(stacked: Any) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], stacked)
        shapes = jax.eval_shape(function, key, first)
        zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
        return lax.scan(step, zeros, (jnp.arange(count), stacked))[0]

    return jax.tree.map(lambda leaf: leaf / count, canonicalize_conv_layouts(summed)(stacked))


def data_text(examples: int | None, mode: Mode, has_batch_norm: bool) -> str:
    """Number of examples, and kind of batch statistics if there are any: for a figure's title."""
    count = "one batch" if examples is None else f"{examples:,} examples"
    return f"{count}{f', {mode.statistics}' if has_batch_norm else ''}"


def count_examples(batch: Batch) -> int | None:
    """Length of the first axis of all arrays; None where they differ.

    Scalars, such as a random key, are shared by all examples.
    """
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if jnp.shape(leaf)}
    return sizes.pop() if len(sizes) == 1 else None


def batch_size(batch: Batch) -> int:
    """`count_examples`, for instruments that need it; raises InputError where it is None."""
    examples = count_examples(batch)
    if examples is None:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise InputError(
            f"batch has arrays of the shapes {shapes}; allowed: arrays whose first axis is the "
            "examples', and scalars"
        )
    return examples


def single_example(batch: Batch, index: Any) -> Batch:
    """The batch of one example; scalars belong to all."""
    return jax.tree.map(lambda leaf: leaf[index][None] if jnp.ndim(leaf) else leaf, batch)


def split_examples(batch: Batch, *sizes: int) -> Any:
    """The batch with its first axis split into these; a scalar is repeated for every group."""

    def split(leaf: Any) -> Array:
        if jnp.ndim(leaf):
            return jnp.reshape(leaf, (*sizes, *jnp.shape(leaf)[1:]))
        return jnp.broadcast_to(leaf, sizes[:-1])

    return jax.tree.map(split, batch)


def list_of(batch: Batches) -> list[Batch]:
    """The batches: those of a list of batches, rather than of one batch given as a list.

    Of a list of inputs alone each is a batch (inputs,), which has no labels.
    """
    if are_inputs_alone(batch):
        return [(each,) for each in batch]
    several = (
        isinstance(batch, list)
        and len(batch) > 0
        and all(isinstance(each, Mapping | tuple | list) for each in batch)
    )
    return list(batch) if several else [batch]


def _require_arrays(batch: Batches) -> None:
    """Raise InputError, naming the entry, for a leaf that is not an array or a number."""
    # JAX warns of a generator in a tree unless it is a leaf.
    leaves = jax.tree_util.tree_leaves_with_path(batch, lambda each: isinstance(each, Iterator))
    for path, leaf in leaves:
        if _is_array(leaf):
            continue
        name, dtype = f"batch{jax.tree_util.keystr(path)}", getattr(leaf, "dtype", None)
        given = type(leaf).__name__ if dtype is None else f"{type(leaf).__name__} of {dtype}"
        hint = "JAX or NumPy arrays of numbers: convert it, or leave it out"
        is_series = isinstance(leaf, Iterable) and not isinstance(leaf, str | bytes)
        if is_series and dtype is None and not path:
            hint = "a batch of arrays, or a list of such batches: give list(batch)"
        raise InputError(f"{name} is a {given}; allowed: {hint}")


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, str | bytes):
        return False
    try:
        jnp.result_type(leaf)
    except TypeError:  # also for arrays of strings
        return False
    return True


def _ghosts(batch: Batch, ghost: int) -> Batch:
    """The batch as ghost batches along a leading axis."""
    examples = batch_size(batch)
    require(
        examples % ghost == 0,
        "mode",
        f"Ghost({ghost})",
        f"a number of examples that divides the batch of {examples}",
    )
    return split_examples(batch, examples // ghost, ghost)
