"""Which parameters are a network's classifier."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

Path = tuple[str, ...]


def classifier_paths(
    make: Callable[[int], nn.Module], classes: int, input_shape: tuple[int, ...]
) -> frozenset[Path]:
    """Paths of the parameters whose shape depends on the number of classes.

    That is the last layer, and the last layer of each auxiliary head. make: number of classes ->
    network; input_shape: (height, width, channels). Computes nothing: two abstract initialisations.
    """

    def shapes(count: int) -> dict[Path, tuple[int, ...]]:
        images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
        init = functools.partial(make(count).init, train=False)
        variables: Any = jax.eval_shape(init, jax.random.key(0), images)
        flat: dict[Path, Any] = flatten_dict(dict(nn.meta.unbox(variables["params"])))
        return {path: leaf.shape for path, leaf in flat.items()}

    mine, others = shapes(classes), shapes(classes + 1)
    return frozenset(path for path in mine if mine[path] != others.get(path))
