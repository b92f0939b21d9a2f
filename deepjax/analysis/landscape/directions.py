"""Random directions in parameter space, with filter or layer normalisation.

Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018
(arXiv:1712.09913), section 4.
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
    from_real,
    is_within,
    module_names,
    params_of,
    path_string,
    replace_leaves,
    squares,
)
from deepjax.errors import InputError, require, unknown_name_error

Normalise = Literal["filter", "layer"] | None
FilterAxes = tuple[tuple[int, ...], tuple[int, ...]]
"""(axes that index layers, as nn.scan stacks them; axes that index the filters of a layer)."""
Plan = tuple[tuple[Path, FilterAxes | None], ...]
"""Per leaf; None: the leaf does not move."""


def random_direction(
    variables: Any,
    key: Array,
    normalise: Normalise = "filter",
    *,
    axes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """A Gaussian direction, normalised so that a step of 1 means the same in every network.

    normalise: "filter" rescales every filter to the L2 norm of the network's own, "layer" every
    kernel; None: neither. Biases and the scales of norms do not move: leaves of those names, and
    leaves without an axis inside a filter.
    A filter computes one output: it is one index of the last axis for a convolution or Dense, of
    all feature axes for DenseGeneral, of (heads, dim) for the query, key and value of attention.
    These axes are found as those of the module's bias, preceded by those of nn.scan; without a
    bias they are the last axis, or for query, key and value those that match the kernel of "out".
    axes: axes by path of a module or leaf, where that fails: first those that index layers, last
    the channel's. Modules without bias inside nn.scan need {"blocks": (0, -1)}.
    Returns a tree like the parameters, float32 (float64 if one of them is), complex where they
    are. Raises InputError for an unknown path or axis, and where a bias matches its kernel in two
    ways. Cost: one pass over the parameters. Source: Li et al. 2018, section 4.
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
        replace_leaves(view, _direction(by_path(view), key, normalise=normalise, plan=plan)), params
    )


def _plan(shapes: Mapping[Path, tuple[int, ...]], axes: Mapping[str, tuple[int, ...]]) -> Plan:
    names = module_names(shapes) | dict.fromkeys(map(path_string, shapes))
    for name in axes:
        if name not in names:
            raise unknown_name_error("path in axes", name, names)
    return tuple((path, _filter_axes(path, shapes, axes)) for path in shapes)


def _filter_axes(
    path: Path, shapes: Mapping[Path, tuple[int, ...]], axes: Mapping[str, tuple[int, ...]]
) -> FilterAxes | None:
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
    """(number of leading layer axes, of trailing channel axes) of a kernel, from its bias."""
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
    name = path_string(path[:-1])
    raise InputError(
        f"kernel of {name} has the shape {shape} with a bias {bias}, whose axes fit in more than "
        f"one way; give axes={{{name!r}: ...}}, the axes that tell its filters apart"
    )


def _by_attention(path: Path, shapes: Mapping[Path, tuple[int, ...]]) -> tuple[int, int] | None:
    """The same for query, key or value, of shape (..., inputs, heads, dim).

    The kernel of "out" in the same module has the shape (..., heads, dim, outputs).
    """
    if len(path) < 2 or path[-2] not in ("query", "key", "value") or path[-1] != "kernel":
        return None
    shape, out = shapes[path], shapes.get((*path[:-2], "out", "kernel"), ())
    fits = len(shape) == len(out) >= 3 and shape[-2:] == out[-3:-1]
    return (len(shape) - 3, 2) if fits else None


@functools.partial(jax.jit, static_argnames=("normalise", "plan"))
def _direction(
    leaves: dict[Path, Array], key: Array, *, normalise: Normalise, plan: Plan
) -> dict[Path, Array]:
    """leaves: real; those of complex parameters have a last axis of 2, inside every filter."""
    found = {path: jnp.zeros_like(leaf) for path, leaf in leaves.items()}
    for index, (path, axes) in enumerate(plan):
        if axes is None:
            continue
        leaf, (layers, channels) = leaves[path], axes
        # As a vector, because XLA:CPU compiles that 7 times faster.
        size = (math.prod(leaf.shape),)
        sample = jax.random.normal(jax.random.fold_in(key, index), size, leaf.dtype)
        found[path] = sample.reshape(leaf.shape)
        if normalise:
            kept = layers + channels if normalise == "filter" else layers
            inside = tuple(axis for axis in range(leaf.ndim) if axis not in kept)
            ratio = jnp.sqrt(squares(leaf, inside) / squares(found[path], inside))
            found[path] *= jnp.expand_dims(ratio, inside)
    return found
