"""Directions through the parameters of a network: trees like them, and random ones that are as long, filter by filter.

Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018 (arXiv:1712.09913), section 4.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from deepjax.analysis.core.params import (
    Path,
    as_real,
    by_path,
    filled,
    from_real,
    is_within,
    modules_of,
    params_of,
    path_string,
    squares,
)
from deepjax.errors import InputError, require, unknown_name_error

Normalise = Literal["filter", "layer"] | None
Apart = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of a leaf that tell layers apart, as nn.scan stacks them, and axes that tell the filters of a layer apart."""
Plan = tuple[tuple[Path, Apart | None], ...]
"""None where nothing moves."""


def random_direction(
    variables: Any,
    key: Array,
    normalise: Normalise = "filter",
    *,
    axes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """A Gaussian direction, each filter of which is as long as the network's own: a step of 1 means as much in any network.

    "filter": every filter is rescaled to the L2 norm of the trained one; "layer": every kernel as a whole; None: not at all.
    Biases, and scales and biases of norms, do not move: leaves of those names, and those without an axis inside a filter.
    A filter is what makes one output: of a convolution or Dense an index of the last axis, of DenseGeneral one of all its features'
    axes, (heads, dim) of an attention's query, key and value. The bias beside a kernel has just these axes, and those of nn.scan in
    front; without a bias they are the last, and those of query, key and value where they fit the kernel of "out" beside them.
    axes: by path of a module or leaf, the axes that tell filters apart, of which the last is the channel's and those before it are
    layers'. Modules inside nn.scan without a bias have the layers in front: {"blocks": (0, -1)}.
    Returns a tree like the parameters, float32 (float64 where one of them is), complex where they are, the same for the same key.
    Raises InputError for an unknown path or axis, and where a bias fits its kernel in two ways.
    Cost: one pass over the parameters. Source: Li et al. 2018, section 4.
    """
    require(
        normalise in ("filter", "layer", None), "normalise", normalise, "'filter', 'layer', None"
    )
    require(
        "params" in variables,
        "variables",
        f"with {sorted(variables)}",
        "with the collection 'params'",
    )
    params = params_of(variables)
    plan = _plan({path: jnp.shape(leaf) for path, leaf in by_path(params).items()}, axes or {})
    view = as_real(params)
    return from_real(
        filled(view, _direction(by_path(view), key, normalise=normalise, plan=plan)), params
    )


def _plan(shapes: Mapping[Path, tuple[int, ...]], axes: Mapping[str, tuple[int, ...]]) -> Plan:
    names = modules_of(shapes) | dict.fromkeys(map(path_string, shapes))
    for name in axes:
        if name not in names:
            raise unknown_name_error("path in axes", name, names)
    return tuple((path, _apart(path, shapes, axes)) for path in shapes)


def _apart(
    path: Path, shapes: Mapping[Path, tuple[int, ...]], axes: Mapping[str, tuple[int, ...]]
) -> Apart | None:
    """The axes of one leaf; None where it does not move."""
    rank = len(shapes[path])
    if path[-1].rpartition("/")[2] in ("bias", "scale"):
        return None
    over = [name for name in axes if is_within(path, (name,))]
    if over:
        kept = axes[max(over, key=len)]
        if rank <= len(kept):
            return None
        places = tuple(axis % rank for axis in kept if -rank <= axis < rank)
        require(
            len(set(places)) == len(kept) > 0,
            f"axes of {path_string(path)}",
            kept,
            f"different axes of its {rank}",
        )
        return places[:-1], places[-1:]
    layers, channels = _by_bias(path, shapes) or _by_attention(path, shapes) or (0, 1)
    if rank <= layers + channels:
        return None
    return tuple(range(layers)), tuple(range(rank - channels, rank))


def _by_bias(path: Path, shapes: Mapping[Path, tuple[int, ...]]) -> tuple[int, int] | None:
    """(layers' axes in front, channels' axes at the end) of a kernel that are those of the bias beside it."""
    bias = shapes.get((*path[:-1], "bias"))
    if path[-1] != "kernel" or not bias:
        return None
    shape, rank = shapes[path], len(bias)
    fits = [
        n
        for n in range(1, rank + 1)
        if bias == shape[: rank - n] + shape[len(shape) - n :] and rank < len(shape)
    ]
    if len(fits) < 2:
        return (rank - fits[0], fits[0]) if fits else None
    attention = _by_attention(path, shapes)
    if attention and attention[1] in fits and sum(attention) == rank:
        return attention
    name, form = (
        path_string(path[:-1]),
        f"{shape} with a bias {bias}, whose axes fit in more than one way",
    )
    raise InputError(
        f"kernel of {name} has the shape {form}; give axes={{{name!r}: ...}}, the axes that tell its filters apart"
    )


def _by_attention(path: Path, shapes: Mapping[Path, tuple[int, ...]]) -> tuple[int, int] | None:
    """The same of a kernel (..., inputs, heads, dim) of query, key or value beside an "out" of (..., heads, dim, outputs)."""
    if len(path) < 2 or path[-2] not in ("query", "key", "value") or path[-1] != "kernel":
        return None
    shape, out = shapes[path], shapes.get((*path[:-2], "out", "kernel"), ())
    fits = len(shape) == len(out) >= 3 and shape[-2:] == out[-3:-1]
    return (len(shape) - 3, 2) if fits else None


@functools.partial(jax.jit, static_argnames=("normalise", "plan"))
def _direction(
    leaves: dict[Path, Array], key: Array, *, normalise: Normalise, plan: Plan
) -> dict[Path, Array]:
    """leaves: real ones; of complex parameters with an axis of 2 at the end, which is inside every filter."""
    found = {path: jnp.zeros_like(leaf) for path, leaf in leaves.items()}
    for place, (path, apart) in enumerate(plan):
        if apart is None:
            continue
        leaf, (layers, channels) = leaves[path], apart
        # XLA:CPU compiles a vector's draw 7 times faster
        drawn = jax.random.normal(
            jax.random.fold_in(key, place), (math.prod(leaf.shape),), leaf.dtype
        )
        found[path] = drawn.reshape(leaf.shape)
        if normalise:
            kept = layers + channels if normalise == "filter" else layers
            inside = tuple(axis for axis in range(leaf.ndim) if axis not in kept)
            found[path] *= jnp.expand_dims(
                jnp.sqrt(squares(leaf, inside) / squares(found[path], inside)), inside
            )
    return found
