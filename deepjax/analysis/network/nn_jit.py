"""Calls of networks in which interceptors see every module, including those inside `nn.jit`."""

import itertools
from typing import Any

from flax import linen as nn
from flax.core import tracers

FLAG = "deepjax_run"
"""Flag of the scopes of the network that is run.

A module that the network applies with variables of its own has other scopes.
"""


class _Run:
    """The value of the flag, with a different hash at every call.

    nn.jit looks up earlier traces by a hash that includes the flags of the module's scope. If it
    found one, the module would not be called, and no interceptor would see it.
    """

    _hashes = itertools.count()

    def __init__(self) -> None:
        self.trace = tracers.current_trace()  # in which the network is called

    def __hash__(self) -> int:
        return next(self._hashes)


def retraced(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a module with the flag set in its scope, before its submodules are bound to it."""
    module.scope.flags = {**module.scope.flags, FLAG: _Run()}
    return module.copy(parent=module.scope.rewound())(*args, **kwargs)


def is_in_network(module: nn.Module) -> bool:
    """Whether it is a module of the network that is run, rather than applied inside on its own."""
    return module.scope is not None and module.scope.has_flag(FLAG)


def is_in_transform(module: nn.Module) -> bool:
    """Whether a module of the network is called inside nn.scan, nn.remat or the like."""
    scope: Any = module.scope
    return tracers.current_trace() != scope.get_flag(FLAG).trace


def sown_values_leave(module: nn.Module) -> bool:
    """Whether what the module sows is returned, from linen's transforms too.

    It is lost inside jax.jvp and other transforms of JAX, of which linen does not know.
    """
    trace, scope = tracers.current_trace(), module.scope
    while scope is not None:
        if scope.trace_level != trace:
            return False
        scope = scope.parent
    return True
