"""A stage's equal blocks as one scanned block: same mathematics, compiled once; and converters.

Unrolled, a stage's blocks are `stage1_block1`, `stage1_block2`, ...; scanned, all but the first are
`stage1_blocks`, whose leaves have an additional leading axis. The first is separate, because it may
stride and project.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

MakeBlock = Callable[[int, str], nn.Module]


def run_blocks(make: MakeBlock, x: Array, stage: int, blocks: int, scan: bool) -> Array:
    """Apply the blocks of a stage, in a compact module; `make(stride, name)` creates one.

    The first block of later stages has stride 2.
    """
    first = 2 if stage > 1 else 1
    x = checkpoint_name(make(first, f"stage{stage}_block1")(x), "block")
    if not scan:
        for block in range(2, blocks + 1):
            x = checkpoint_name(make(1, f"stage{stage}_block{block}")(x), "block")
        return x
    if blocks > 1:
        scanned = nn.scan(
            lambda block, x, _: (checkpoint_name(block(x), "block"), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            length=blocks - 1,
        )
        x, _ = scanned(make(1, f"stage{stage}_blocks"), x, None)
    return x


def stack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of an unrolled network -> those of the same network with scan=True.

    Raises ValueError when blocks of a stage differ.
    """
    return {collection: _stack(tree) for collection, tree in variables.items()}


def unstack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a network with scan=True -> those of the same network unrolled."""
    return {collection: _unstack(tree) for collection, tree in variables.items()}


def _stack(tree: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: leaf for name, leaf in tree.items() if _later_block(name) is None}
    stages: dict[int, dict[int, Any]] = {}
    for name, leaf in tree.items():
        found = _later_block(name)
        if found is not None:
            stages.setdefault(found[0], {})[found[1]] = leaf
    for stage, blocks in stages.items():
        in_order = [blocks[block] for block in sorted(blocks)]
        rest[f"stage{stage}_blocks"] = jax.tree.map(_stacked, *in_order)
    return rest


def _stacked(*leaves: Any) -> Any:
    """Stack; NumPy stays NumPy, as PyTorch's 64-bit counters would lose half their bits in JAX."""
    on_host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    return np.stack(leaves) if on_host else jnp.stack(leaves)


def _unstack(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, leaf in tree.items():
        found = re.fullmatch(r"stage(\d+)_blocks", name)
        if found is None:
            flat[name] = leaf
            continue
        count = jax.tree.leaves(leaf)[0].shape[0]
        for block in range(count):
            flat[f"stage{found[1]}_block{block + 2}"] = jax.tree.map(
                lambda stacked, block=block: stacked[block], leaf
            )
    return flat


def _later_block(name: str) -> tuple[int, int] | None:
    """Stage and block number of a block that is not its stage's first."""
    found = re.fullmatch(r"stage(\d+)_block(\d+)", name)
    return (int(found[1]), int(found[2])) if found and int(found[2]) > 1 else None
