"""Calls of networks in which interceptors of linen see every module, also those under `nn.jit`."""

import itertools
from typing import Any

from flax.core import tracers

RUN = "deepjax_run"
"""Flag of the scopes of the network that `forward.run` calls; a module that the network applies on its own has other scopes."""


class _Run:
    """The flag's value, whose hash changes at every call.

    nn.jit hashes the flags of a module's scope to find an earlier trace, and so finds none. A module whose trace it finds is not
    called, and no interceptor sees it.
    """

    _hashes = itertools.count()

    def __init__(self) -> None:
        self.trace = tracers.current_trace()  # in which the network is called

    def __hash__(self) -> int:
        return next(self._hashes)


def traced_anew(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The module's call, with flags in its scope from before its submodules are bound to it."""
    module.scope.flags = {**module.scope.flags, RUN: _Run()}
    return module.copy(parent=module.scope.rewound())(*args, **kwargs)
