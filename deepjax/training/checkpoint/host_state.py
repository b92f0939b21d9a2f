"""A state that is spread over processes: gathered on the host, and put back."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from deepjax.errors import InputError
from deepjax.training.checkpoint.inspect import named_leaves, structure


def on_host(state: Any) -> Any:
    """Every leaf as a complete array on the host; all processes call it.

    A leaf that is sharded over processes is gathered, one at a time.
    """
    return jax.tree.map(_complete, state)


def put_like(stored: Any, like: Any) -> Any:
    """Arrays on the host, by path, as the leaves of `like`: its types and shardings.

    Raises InputError where names, types or shapes differ.
    """
    expected, found = structure(like), structure(stored)
    if expected != found:
        name = sorted(expected.items() ^ found.items())[0][0]
        raise InputError(
            f"{name} is {found.get(name, 'missing')}, not {expected.get(name, 'there')}"
        )
    leaves = named_leaves(stored)
    put = [_put(leaves[name], leaf) for name, leaf in named_leaves(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), put)


def _complete(leaf: jax.Array) -> np.ndarray:
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _put(array: np.ndarray, like: jax.Array) -> jax.Array:
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
