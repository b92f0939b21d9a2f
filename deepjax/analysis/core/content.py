"""A hashable key for the content of a value, such as a module with a dict or an array in a field.

Compiled programs are found by it: a module that is created again, and one whose config was changed
in place, are told apart by what they contain.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Set
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.core import Tracer

from deepjax.errors import InputError


def content_key(value: Any, path: str = "") -> Hashable:
    """The value itself if it can be hashed; else a tuple of its type and the keys of its parts.

    Raises InputError, naming the field, for a traced array, whose content is unknown.
    """
    if isinstance(value, Tracer):
        raise InputError(
            f"field {path.lstrip('.')} is a traced array; allowed: fields that are known when "
            "the program is compiled"
        )
    try:
        hash(value)
        return value
    except TypeError:
        pass
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return (type(value).__name__, array.shape, array.dtype.str, array.tobytes())
    parts = _parts(value)
    keys = tuple((name, content_key(each, f"{path}.{name}")) for name, each in parts.items())
    return (type(value), keys)


def _parts(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Set):
        return dict.fromkeys(sorted(value, key=repr))
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if isinstance(value, nn.Module) or dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if hasattr(value, "items"):  # ml_collections.ConfigDict
        return dict(value.items())
    if not hasattr(value, "__dict__"):
        raise InputError(f"a {type(value).__name__} can neither be hashed nor inspected")
    return vars(value)
