"""Parameters by path, without boxes, as real numbers in float32 or float64.

A complex parameter is a pair of real ones: it counts as two, the Hessian has two rows for it, and
a squared norm is the sum of |z|^2. A tree that an instrument returns or takes has complex leaves
where the parameters do, with the values of the real and imaginary parts. A gradient in such a tree
is the direction of steepest ascent; `jax.grad` returns its conjugate.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jax import Array, lax

from deepjax.errors import InputError, require

Path = tuple[str, ...]
"""Names from the network to the leaf. A name may contain "/", as those of `nn.WeightNorm` do."""


def unboxed(tree: Any) -> Any:
    """The tree without `nn.Partitioned`, `nn.LogicallyPartitioned` and other boxes."""
    return nn.meta.unbox(tree)


def params_of(tree: Any) -> Any:
    """The "params" of variables, or the tree itself where there are none; unboxed."""
    return unboxed(tree["params"] if isinstance(tree, Mapping) and "params" in tree else tree)


def by_path(tree: Any) -> dict[Path, Any]:
    """The unboxed leaves by path, in the order of `jax.tree.leaves`, also inside jit."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(unboxed(tree))
    return {tuple(map(_name, path)): leaf for path, leaf in leaves}


def replace_leaves(tree: Any, leaves: Mapping[Path, Any]) -> Any:
    """The unboxed tree with the given leaves replaced."""
    old, structure = by_path(tree), jax.tree.structure(unboxed(tree))
    return jax.tree.unflatten(structure, [leaves.get(path, leaf) for path, leaf in old.items()])


def subtree(tree: Any, leaves: Mapping[Path, Any]) -> Any:
    """The given leaves as a tree: of the same structure if all are given, else nested dicts."""
    return (
        replace_leaves(tree, leaves)
        if len(leaves) == len(by_path(tree))
        else unflatten_dict(dict(leaves))
    )


def path_string(path: Path) -> str:
    """The path for display, and for `layers=`."""
    return "/".join(path)


def module_names(paths: Iterable[Path]) -> dict[str, None]:
    """Names of all modules above the leaves, without the network itself, in order."""
    return dict.fromkeys(path_string(path[:end]) for path in paths for end in range(1, len(path)))


def is_within(path: Path, names: Iterable[str]) -> bool:
    """Whether one of the names is the leaf's, or that of a module above it."""
    above = {path_string(path[:end]) for end in range(1, len(path) + 1)}
    return not above.isdisjoint(names)


def check_like(name: str, tree: Any, params: Any) -> dict[Path, Any]:
    """The leaves by path; raises InputError unless the tree is like the parameters."""
    given, wanted = by_path(tree), by_path(params)
    is_leaf = set(given) == {()} != set(wanted)
    require(not is_leaf, name, type(tree).__name__, "a tree like the parameters")
    if set(given) != set(wanted):
        wrong = min(set(given) ^ set(wanted))
        fault = f"{'without' if wrong in wanted else 'with'} {path_string(wrong)!r}"
        raise InputError(f"{name} is a tree {fault}; allowed: one like the parameters")
    for path, leaf in wanted.items():
        shape, field = jnp.shape(given[path]), f"{name}'s {path_string(path)}"
        require(
            shape == jnp.shape(leaf),
            field,
            f"of shape {shape}",
            f"{jnp.shape(leaf)}, as the parameters",
        )
        dtype = jnp.result_type(given[path])
        require(
            is_complex(given[path]) == is_complex(leaf),
            field,
            str(dtype),
            f"{jnp.result_type(leaf)}, as the parameters",
        )
    return given


def is_complex(leaf: Any) -> bool:
    """Whether it is an array of complex numbers."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating))


def sum_dtype(*leaves: Any) -> Any:
    """The real dtype for sums over these arrays: float64 if one of them is, else float32."""
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    double = any(
        jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits == 64 for dtype in dtypes
    )
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def widened(value: Array) -> Array:
    """A real array in `sum_dtype`, because 16 bits are too few for sums."""
    return value.astype(sum_dtype(value))


def as_real(tree: Any) -> Any:
    """The unboxed tree in real numbers of one `sum_dtype`; complex leaves get a last axis of 2.

    Raises InputError for leaves that are not floats: they have no gradient.
    """
    return replace_leaves(tree, real_leaves(by_path(tree)))


def real_leaves(leaves: Mapping[Path, Any]) -> dict[Path, Array]:
    """`as_real` of leaves by path."""
    for path, leaf in leaves.items():
        dtype = jnp.result_type(leaf)
        fits = jnp.issubdtype(dtype, jnp.inexact)
        require(
            fits,
            f"parameter {path_string(path)!r}",
            str(dtype),
            "real or complex floats, which have gradients",
        )
    dtype = sum_dtype(*leaves.values())
    return {path: real_pairs(leaf).astype(dtype) for path, leaf in leaves.items()}


def real_pairs(leaf: Any) -> Array:
    """A complex array as (..., 2) of real and imaginary parts; a real one as it is."""
    leaf = jnp.asarray(leaf)
    return jnp.stack([leaf.real, leaf.imag], axis=-1) if is_complex(leaf) else leaf


def from_real(view: Any, like: Any) -> Any:
    """The inverse of `as_real`, in the precision of the view; leading axes are kept."""
    return jax.tree.map(
        lambda leaf, old: _joined(leaf) if is_complex(old) else leaf, view, unboxed(like)
    )


def restored(view: Any, like: Any) -> Any:
    """The inverse of `as_real`, in the dtypes of `like`."""
    return jax.tree.map(
        lambda leaf, old: leaf.astype(jnp.result_type(old)), from_real(view, like), unboxed(like)
    )


def squares(leaf: Any, axes: tuple[int, ...] | None = None) -> Array:
    """Sum of |z|^2 over the axes, default all, in `sum_dtype`."""
    leaf = jnp.asarray(leaf)
    dtype = sum_dtype(leaf)
    parts = [leaf.real, leaf.imag] if is_complex(leaf) else [leaf]
    sums = [jnp.sum(jnp.square(part.astype(dtype)), axis=axes) for part in parts]
    return sums[0] + sums[1] if is_complex(leaf) else sums[0]


def real_count(leaf: Any) -> int:
    """How many real numbers an array holds: two for each complex one."""
    size = int(jnp.size(leaf))
    return 2 * size if is_complex(leaf) else size


def _joined(leaf: Array) -> Array:
    return lax.complex(leaf[..., 0], leaf[..., 1])


def _name(key: Any) -> str:
    """Of a dict's key, an attribute or an index: each is one part of a path."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
