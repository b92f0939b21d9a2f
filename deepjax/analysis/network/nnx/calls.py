"""Interception of the method calls of an NNX module, which linen has and NNX has not."""

import contextlib
import functools
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from flax import nnx

from deepjax.analysis.network.layer import Around, Layer, Method
from deepjax.analysis.network.nnx.run import Run, is_inside_transform, mark, place_of

_active: ContextVar[tuple[Around, ...]] = ContextVar("deepjax_nnx_interceptors", default=())


@contextlib.contextmanager
def intercept_nnx(around: Around) -> Iterator[None]:
    """Context: `around` is called in place of every public method of modules from `see_calls`."""
    token = _active.set((*_active.get(), around))
    try:
        yield
    finally:
        _active.reset(token)


def see_calls(module: nnx.Module, run: Run) -> None:
    """Let interceptors see the calls of all modules inside, if there are any now.

    Each module gets a class derived from its own, one for each class. nnx.scan and nnx.jit rebuild
    modules from their class, so that it is known inside of them too. `module` must belong to nobody
    else. A linen module in nnx.bridge.ToNNX stands for it.
    """
    if not _active.get():
        return
    for path, each in list(nnx.iter_modules(module)):
        if not isinstance(each, nnx.List | nnx.Dict | nnx.bridge.ToNNX):
            each.__class__ = _seen_class(type(each))
            mark(each, run, path)


def is_intercepted() -> bool:
    """Whether there are interceptors now."""
    return bool(_active.get())


def call_intercepted(
    function: Any, layer: Layer, method: Method, arguments: Any, keywords: Any
) -> Any:
    """The result of a method's call by way of all interceptors."""
    for around in _active.get():
        function = _intercepted(function, around, layer, method)
    return function(*arguments, **keywords)


@functools.cache  # flax keeps every class for ever
def _seen_class(base: type) -> type:
    methods = {
        name: _wrapped(method, name)
        for kind in reversed(base.__mro__)
        if issubclass(kind, nnx.Module) and kind is not nnx.Module
        for name, method in vars(kind).items()
        if (name == "__call__" or not name.startswith("_"))
        and callable(method)
        and not isinstance(method, staticmethod | classmethod | type)
        and not hasattr(nnx.Module, name if name != "__call__" else "")
    }
    body = {**methods, "__module__": base.__module__}
    # flax would make a pytree of a class derived from one that is none.
    keywords = {} if getattr(base, "_pytree__is_pytree", True) else {"pytree": False}
    return types.new_class(base.__name__, (base,), keywords, lambda names: names.update(body))


def _wrapped(method: Any, name: str) -> Any:
    @functools.wraps(method)
    def seen(self: Any, *arguments: Any, **keywords: Any) -> Any:
        function, place = types.MethodType(method, self), place_of(self)
        if place is None:
            return function(*arguments, **keywords)
        run, path = place
        kind = type(self).__mro__[1]
        layer = Layer(path, kind, path[-1] if path else None, is_inside_transform(run), self)
        return call_intercepted(function, layer, Method(name, method), arguments, keywords)

    return seen


def _intercepted(function: Any, around: Around, layer: Layer, method: Method) -> Any:
    """As in linen, `call.func` takes other arguments than those of the call."""

    def intercepted(*arguments: Any, **keywords: Any) -> Any:
        call = functools.partial(function, *arguments, **keywords)
        return around(layer, method, call, arguments, keywords)

    return intercepted
