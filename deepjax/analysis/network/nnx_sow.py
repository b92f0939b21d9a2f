"""What an NNX module sows in a call, and the names of its collections."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flax import nnx
from flax.traverse_util import unflatten_dict

COLLECTIONS = ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats"), (nnx.Cache, "cache"))


def collection_name(kind: type[nnx.Variable]) -> str:
    """The collection of variables of a kind, as in linen; of others the kind's name."""
    for known, name in COLLECTIONS:
        if issubclass(kind, known):
            return name
    return kind.__name__.lower()


def call_and_capture(
    module: nnx.Module, call: Callable[[], Any], names: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """(what the call returns, {collection: what was sown into it}); others are dropped.

    As nnx.capture, which adds an entry to each nnx.Dict, so that a loop over it fails.
    """
    modules = [
        (path, each)
        for path, each in nnx.iter_modules(module)
        if not isinstance(each, nnx.List | nnx.Dict)
    ]
    kinds = [kind for name in names for kind in _kinds(name)]
    for _, each in modules:
        setattr(each, _CAPTURES, nnx.data(tuple(kind({}) for kind in kinds)))
    try:
        outputs = call()
        sown: dict[str, dict[Any, Any]] = {name: {} for name in names}
        for path, each in modules:
            for captured in getattr(each, _CAPTURES):
                into = sown[collection_name(type(captured))]
                into |= {(*map(str, path), name): value for name, value in captured.items()}
    finally:
        for _, each in modules:
            delattr(each, _CAPTURES)
    return outputs, {name: unflatten_dict(flat) for name, flat in sown.items()}


_CAPTURES = "__captures__"  # where nnx.Module.sow looks; without it sow adds a variable, and warns


def _kinds(name: str) -> list[type[nnx.Variable]]:
    """The kinds of variables of that collection: of `self.sow(name, ...)`, and of classes."""
    named = nnx.variable_type_from_name(name, allow_register=True)
    found = [kind for kind in _subclasses(nnx.Variable) if collection_name(kind) == name]
    return list(dict.fromkeys([named, *found]))


def _subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)
