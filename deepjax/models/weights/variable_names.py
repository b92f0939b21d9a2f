"""Variables as tensors under their own paths, for networks without PyTorch's names."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError
from deepjax.models.weights.tensor_checks import format_list

Tensors = Mapping[str, np.ndarray]


def to_paths(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every leaf under its path, the collection first.

    >>> to_paths({"params": {"head": {"bias": np.zeros(3)}}})
    {'params.head.bias': array([0., 0., 0.])}
    """
    flat = flatten_dict(dict(nn.meta.unbox(variables)))
    return {".".join(map(str, path)): np.asarray(leaf) for path, leaf in flat.items()}


def from_paths(model: nn.Module, shape: tuple[int, int, int], tensors: Tensors) -> dict[str, Any]:
    """Variables of a network from tensors that `to_paths` named; bitwise.

    shape: height, width and channels of an image. Raises InputError naming the tensors that are
    missing, unknown, or of another shape.
    """
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    init = functools.partial(model.init, train=False)
    abstract = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), images))
    leaves: dict[tuple[str, ...], Any] = flatten_dict(dict(abstract))
    expected = {
        ".".join(map(str, path)): (path, leaf)
        for path, leaf in leaves.items()
        if path[0] in ("params", "batch_stats")
    }
    problems = [f"{name} is not of it" for name in tensors if name not in expected]
    for name, (_, leaf) in expected.items():
        if name not in tensors:
            problems.append(f"{name} {leaf.shape} is missing")
        elif tensors[name].shape != leaf.shape:
            problems.append(f"{name} is {tensors[name].shape}, the network has {leaf.shape}")
    if problems:
        kind = type(model).__name__
        raise InputError(f"these are not weights of the network {kind}: {format_list(problems)}")
    return unflatten_dict(
        {path: jnp.asarray(tensors[name], leaf.dtype) for name, (path, leaf) in expected.items()}
    )
