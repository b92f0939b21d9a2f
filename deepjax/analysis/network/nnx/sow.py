"""What an NNX module sows in a call, and the names of its collections."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from flax import nnx
from flax.nnx import variablelib

from deepjax.analysis.network.nnx.run import Sown

COLLECTIONS = ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats"), (nnx.Cache, "cache"))


def collection_name(kind: type[nnx.Variable]) -> str:
    """The collection of variables of a kind, as in linen; of others the kind's name."""
    for known, name in COLLECTIONS:
        if issubclass(kind, known):
            return name
    return kind.__name__.lower()


def call_and_capture(module: nnx.Module, call: Callable[[], Any], sown: Sown) -> Any:
    """What the call returns; what it sows into the collections of `sown` is put there.

    As nnx.capture, which adds an entry to each nnx.Dict, so that a loop over it fails, and to
    nnx.bridge.ToNNX, which takes it for a variable.
    """
    modules = [
        (path, each)
        for path, each in nnx.iter_modules(module)
        if not isinstance(each, nnx.List | nnx.Dict | nnx.bridge.ToNNX)
    ]
    with _kinds(sown) as kinds:
        for _, each in modules:
            setattr(each, _CAPTURES, nnx.data(tuple(kind({}) for kind in kinds)))
        try:
            outputs = call()
            for path, each in modules:
                for captured in getattr(each, _CAPTURES):
                    into = sown[kinds[type(captured)]]
                    into |= {(*map(str, path), name): value for name, value in captured.items()}
        finally:
            for _, each in modules:
                delattr(each, _CAPTURES)
    return outputs


_CAPTURES = "__captures__"  # where nnx.Module.sow looks; without it sow adds a variable, and warns


@contextlib.contextmanager
def _kinds(names: Collection[str]) -> Iterator[dict[type[nnx.Variable], str]]:
    """{kind of variables: its collection}: of `self.sow(name, ...)`, and of classes.

    In the context all names are in flax's registry. Kinds that it, or flax in `self.sow`, has made
    are removed at its end, for whoever registers their names later.
    """
    registry = variablelib.VariableTypeCache
    before = set(registry)
    for name in names:
        if name not in registry and name not in _made:
            _made[name] = type(name, (nnx.Variable,), {})
    registry.update({name: kind for name, kind in _made.items() if name not in before})
    try:
        named = {registry[name]: name for name in names}
        kinds = {kind: collection_name(kind) for kind in _subclasses(nnx.Variable)}
        yield {kind: name for kind, name in kinds.items() if name in names} | named
    finally:
        for name in set(registry) - before:
            if registry[name].__module__ in (__name__, variablelib.__name__):
                _made[name] = registry.pop(name)


_made: dict[str, type[nnx.Variable]] = {}  # used again, since flax keeps every class for ever


def _subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)
