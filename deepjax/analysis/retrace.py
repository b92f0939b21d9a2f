"""A call under which `nn.jit` traces every instance again, so that method interception sees each."""

import itertools
from typing import Any

from flax import linen as nn
from flax.core import freeze

_numbers = itertools.count()


class _NeverTheSame:
    """Has another hash each time it is asked for one."""

    def __hash__(self) -> int:
        return next(_numbers)


def call_retraced(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    """The module's call, for `model.apply(..., method=call_retraced)` and `model.init`.

    `nn.jit` keeps one trace for all instances with equal fields, across calls too, and interceptors do not run in what is kept.
    Its key includes the scope's flags, which all inner scopes inherit: a flag whose hash changes makes every key a new one.
    """
    scope: Any = module.scope
    scope.flags = freeze({**scope.flags, "deepjax_retrace": _NeverTheSame()})
    return module(*arguments, **keywords)
