"""The size of a batch, and several batches stacked into one array."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deepjax.analysis.core.module import Batch, inputs_of
from deepjax.errors import InputError, require

Batches = Batch | list[Batch]
"""One batch, or a list of batches of equal size, over which losses are averaged.

Batch statistics are those of each batch.
"""


@dataclasses.dataclass(frozen=True)
class BatchStack:
    """Batches of one size along a leading axis."""

    first: Batch
    stacked: Any
    examples: int
    """In all batches."""
    batches: int


def stack(batch: Batches) -> BatchStack:
    """Stack one or several batches; raises InputError where their sizes differ."""
    batches = batch if _is_list(batch) else [batch]
    shapes = {str(jax.tree.map(jnp.shape, each)) for each in batches}
    require(
        len(shapes) == 1,
        "batch",
        f"a list of batches of the shapes {', '.join(sorted(shapes))}",
        "batches of one size",
    )
    examples = sum(batch_size(each) for each in batches)
    return BatchStack(
        batches[0],
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches),
        examples,
        len(batches),
    )


def data_text(examples: int, bn: str, has_batch_norm: bool) -> str:
    """Number of examples, and kind of batch statistics if there are any: for a figure's title."""
    return f"{examples:,} examples{f', {bn} statistics' if has_batch_norm else ''}"


def require_one(batch: Batches, taker: str) -> None:
    """Raise InputError for a list of batches."""
    if _is_list(batch):
        raise InputError(f"batch is a list of {len(batch)} batches; {taker} takes one")


def batch_size(batch: Batch) -> int:
    """Length of the first axis of all arrays; raises InputError where they differ.

    Scalars, such as a random key, are shared by all examples.
    """
    inputs_of(batch)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    sizes = {shape[0] for shape in shapes if shape}
    if len(sizes) != 1:
        raise InputError(
            f"batch has arrays of the shapes {shapes}; allowed: arrays whose first axis is the "
            "examples', and scalars"
        )
    return sizes.pop()


def _is_list(batch: Batches) -> bool:
    """Whether it is a list of batches rather than one batch given as a list."""
    return (
        isinstance(batch, list)
        and len(batch) > 0
        and all(isinstance(each, Mapping | tuple | list) for each in batch)
    )
