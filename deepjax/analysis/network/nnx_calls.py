"""Interception of the method calls of an NNX module, which linen has and NNX has not."""

import contextlib
import functools
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from flax import nnx
from flax.core import tracers

from deepjax.analysis.network.layer import Around, Layer, Method

_active: ContextVar[tuple[Around, ...]] = ContextVar("deepjax_nnx_interceptors", default=())


@contextlib.contextmanager
def intercept_nnx(around: Around) -> Iterator[None]:
    """Context: `around` is called in place of every public method of modules from `see_calls`."""
    token = _active.set((*_active.get(), around))
    try:
        yield
    finally:
        _active.reset(token)


def see_calls(module: nnx.Module) -> None:
    """Let interceptors see the calls of all modules inside, if there are any now.

    Each module gets a class of its own, derived from its class, which knows its path. nnx.scan and
    nnx.jit rebuild modules from their class, so that it is known inside of them too; as it is new,
    nnx.jit traces anew rather than reuse a trace without interceptors. `module` must belong to
    nobody else.
    """
    if not _active.get():
        return
    trace = tracers.current_trace()
    for path, each in list(nnx.iter_modules(module)):
        if not isinstance(each, nnx.List | nnx.Dict):
            each.__class__ = _seen_class(type(each), tuple(map(str, path)), trace)


def _seen_class(base: type, path: tuple[str, ...], trace: Any) -> type:
    methods = {
        name: _wrapped(method, name, path, trace)
        for kind in reversed(base.__mro__)
        if issubclass(kind, nnx.Module) and kind is not nnx.Module
        for name, method in vars(kind).items()
        if (name == "__call__" or not name.startswith("_"))
        and callable(method)
        and not isinstance(method, staticmethod | classmethod | type)
        and not hasattr(nnx.Module, name if name != "__call__" else "")
    }
    return type(base.__name__, (base,), {**methods, "__module__": base.__module__})


def _wrapped(method: Any, name: str, path: tuple[str, ...], trace: Any) -> Any:
    @functools.wraps(method)
    def seen(self: Any, *arguments: Any, **keywords: Any) -> Any:
        inside = tracers.current_trace() != trace
        kind = type(self).__mro__[1]
        layer = Layer(path, kind, path[-1] if path else None, inside, self)
        function: Any = types.MethodType(method, self)
        for around in _active.get():
            function = _intercepted(function, around, layer, Method(name, method))
        return function(*arguments, **keywords)

    return seen


def _intercepted(function: Any, around: Around, layer: Layer, method: Method) -> Any:
    """As in linen, `call.func` takes other arguments than those of the call."""

    def intercepted(*arguments: Any, **keywords: Any) -> Any:
        call = functools.partial(function, *arguments, **keywords)
        return around(layer, method, call, arguments, keywords)

    return intercepted
