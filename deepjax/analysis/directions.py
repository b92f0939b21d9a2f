"""Directions through the parameters of a network: trees like them, and random ones that are as long, filter by filter.

Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018 (arXiv:1712.09913), section 4.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from deepjax.errors import InputError, require, unknown

Normalise = Literal["filter", "layer"] | None
Plan = tuple[tuple[str, tuple[int, ...] | None], ...]
"""By path the axes that tell filters apart; None where nothing moves."""


def random_direction(
    variables: Any, key: Array, normalise: Normalise = "filter", *, axes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Any]:
    """A Gaussian direction, each filter of which is as long as the network's own: a step of 1 means as much in any network.

    "filter": every filter is rescaled to the L2 norm of the trained one; "layer": every kernel as a whole; None: not at all.
    Biases, and scales and biases of norms, do not move: leaves of those names, and those without an axis inside a filter.
    axes: by path of a module or leaf, the axes that tell filters apart, of which the last is the channel's and those before it are
    layers'; default (-1,), linen's output channels. Modules inside nn.scan have the layers in front: {"blocks": (0, -1)}.
    Returns a tree like the parameters, float32, the same for the same key. Raises InputError for an unknown path or axis.
    Cost: one pass over the parameters. Source: Li et al. 2018, section 4.
    """
    require(normalise in ("filter", "layer", None), "normalise", normalise, "'filter', 'layer', None")
    require("params" in variables, "variables", f"with {sorted(variables)}", "with the collection 'params'")
    leaves = by_path(variables["params"])
    plan = _plan({path: jnp.ndim(leaf) for path, leaf in leaves.items()}, axes or {})
    return unflatten_dict(_direction(leaves, key, normalise=normalise, plan=plan), sep="/")


def params_of(tree: Any) -> Any:
    """The parameters of a network's variables; a tree of parameters is its own."""
    return tree["params"] if isinstance(tree, Mapping) and "params" in tree else tree


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path, in an order that jit does not change."""
    flat: dict[str, Any] = flatten_dict(tree, sep="/")  # type: ignore[assignment]  # flax types the nesting, not the result
    return dict(sorted(flat.items()))


def check_like(name: str, tree: Any, params: Any) -> dict[str, Any]:
    """The tree's leaves by path; raises InputError where it is not a tree like the parameters."""
    require(isinstance(tree, Mapping), name, type(tree).__name__, "a tree like the parameters")
    given, wanted = by_path(tree), by_path(params)
    if set(given) != set(wanted):
        wrong = min(set(given) ^ set(wanted))
        raise InputError(f"{name} is a tree {'without' if wrong in wanted else 'with'} {wrong!r}; allowed: one like the parameters")
    for path, leaf in wanted.items():
        shape = jnp.shape(given[path])
        require(shape == jnp.shape(leaf), f"{name}'s {path}", f"of shape {shape}", f"{jnp.shape(leaf)}, as the parameters")
    return given


def _plan(ranks: Mapping[str, int], axes: Mapping[str, tuple[int, ...]]) -> Plan:
    modules = {"/".join(path.split("/")[:end]) for path in ranks for end in range(1, path.count("/") + 2)}
    for name in axes:
        if name not in modules:
            raise unknown("path in axes", name, modules)
    found = []
    for path, rank in ranks.items():
        over = [name for name in axes if path == name or path.startswith(f"{name}/")]
        kept = axes[max(over, key=len)] if over else (-1,)
        if rank <= len(kept) or path.rpartition("/")[2] in ("bias", "scale"):
            found.append((path, None))
            continue
        places = tuple(axis % rank for axis in kept if -rank <= axis < rank)
        require(len(set(places)) == len(kept) > 0, f"axes of {path}", kept, f"different axes of its {rank}")
        found.append((path, places))
    return tuple(found)


@functools.partial(jax.jit, static_argnames=("normalise", "plan"))
def _direction(leaves: dict[str, Array], key: Array, *, normalise: Normalise, plan: Plan) -> dict[str, Array]:
    found = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in leaves.items()}
    for place, (path, kept) in enumerate(plan):
        if kept is None:
            continue
        leaf = leaves[path].astype(jnp.float32)
        drawn = jax.random.normal(jax.random.fold_in(key, place), (leaf.size,))  # XLA:CPU compiles a vector's draw 7 times faster
        found[path] = drawn.reshape(leaf.shape)
        if normalise:
            apart = kept if normalise == "filter" else kept[:-1]
            inside = tuple(axis for axis in range(leaf.ndim) if axis not in apart)
            found[path] *= _norm(leaf, inside) / _norm(found[path], inside)
    return found


def _norm(leaf: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(leaf), axis=axes, keepdims=True))
