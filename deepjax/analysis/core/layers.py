"""`layers=`: which layers an instrument measures."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from deepjax.analysis.core.params import Path, by_path, is_within, module_names, path_string
from deepjax.errors import require, unknown_name_error

Layers = str | Sequence[str] | None
"""Paths of modules as in the parameters, "stage1_block1/conv1", or patterns, "stage1_*"; one or
several. None: all, or those that the instrument names. Where an instrument measures parameters, a
module's are its own and those of all modules inside.
"""
LayerNames = tuple[str, ...] | None
"""Names of modules and parameters, which can be a static argument of jit; None: all."""


def matching_layers(layers: Layers, known: Iterable[str]) -> set[str]:
    """The names among `known` that `layers` selects; all of them for None.

    "*" stands for any text without "/", "**" for any text. Raises InputError for an empty
    sequence, and for a name or pattern that selects nothing (with the nearest name).
    """
    names = list(known)
    if layers is None:
        return set(names)
    given = (layers,) if isinstance(layers, str) else tuple(layers)
    require(len(given) > 0, "layers", given, "None, or the path of a layer, or several")
    found: set[str] = set()
    for layer in given:
        selected = {layer} & set(names) or {name for name in names if _matches(name, layer)}
        if not selected:
            raise unknown_name_error("layer", layer, names)
        found |= selected
    return found


def parameter_layers(layers: Layers, params: Any) -> LayerNames:
    """The modules and parameters that `layers` selects, in the parameters' order; None for None.

    Raises InputError for a name or pattern that selects nothing.
    """
    if layers is None:
        return None
    leaves = by_path(params)
    names = [*module_names(leaves), *map(path_string, leaves)]
    chosen = matching_layers(layers, names)
    return tuple(name for name in dict.fromkeys(names) if name in chosen)


def selected_leaves(params: Any, layers: LayerNames) -> dict[Path, Any]:
    """The leaves of these modules, and of all modules inside, by path; also inside jit."""
    leaves = by_path(params)
    if layers is None:
        return leaves
    return {path: leaf for path, leaf in leaves.items() if is_within(path, layers)}


def _matches(name: str, pattern: str) -> bool:
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern)
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
