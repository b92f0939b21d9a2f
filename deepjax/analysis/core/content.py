"""A hashable key for the content of a value, such as a module with a dict or an array in a field.

Compiled programs are found by it: a module that is created again, and one whose config was changed
in place, differ by what they contain.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Set
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.core import Tracer

from deepjax.errors import InputError


def content_key(value: Any, path: str = "", inside: tuple[int, ...] = ()) -> Hashable:
    """Type and value if it can be hashed by content; else its type and the keys of its parts.

    An object that would be hashed by identity, such as a config, has the key of its attributes. For
    functions, classes and what cannot be inspected it is the object itself.
    Raises InputError, naming the field, for a traced array, whose content is unknown, and for what
    can neither be hashed nor inspected.
    """
    if isinstance(value, Tracer):
        raise InputError(
            f"field {path.lstrip('.')} is a traced array; allowed: fields that are known when "
            "the program is compiled"
        )
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return (type(value).__name__, array.shape, array.dtype.str, array.tobytes())
    parts = None if id(value) in inside else _parts(value)
    if parts is None:
        return (type(value), _hashable(value))
    inside = (*inside, id(value))
    keys = ((name, content_key(each, f"{path}.{name}", inside)) for name, each in parts.items())
    return (type(value), tuple(keys))


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        raise InputError(f"a {type(value).__name__} can neither be hashed nor inspected") from None
    return value


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Named parts of a value that is not hashed by content; None for one that is."""
    if isinstance(value, type | ModuleType) or (
        callable(value) and not isinstance(value, nn.Module)
    ):
        return None
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Set):
        return dict.fromkeys(sorted(value, key=repr))
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if isinstance(value, nn.Module) or dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        names = [field.name for field in fields if field.compare and field.name != "parent"]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if type(value).__hash__ not in (None, object.__hash__):
        return None
    if hasattr(value, "items"):  # ml_collections.ConfigDict
        return dict(value.items())
    return getattr(value, "__dict__", None)
