"""Makes and checks a network that is not in the registry."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from deepjax.errors import InputError


def make_network(make: Callable[..., nn.Module], fields: Mapping[str, Any]) -> nn.Module:
    """`make(**fields)`; raises InputError unless it is a module called with (images, train)."""
    name = getattr(make, "__name__", type(make).__name__)
    if isinstance(make, nn.Module) or not callable(make):
        raise InputError(
            f"make is {_kind(make)}; "
            f"allowed: a linen module's class, or a function of {', '.join(fields)} that makes one"
        )
    try:
        inspect.signature(make).bind(**fields)
    except TypeError as error:
        raise InputError(
            f"make, {name}, does not take the fields of the run ({error}); "
            f"allowed: one that takes {', '.join(fields)}"
        ) from error
    network = make(**fields)
    if not isinstance(network, nn.Module):
        raise InputError(f"make, {name}, gives {_kind(network)}; allowed: a flax.linen module")
    try:
        inspect.signature(network.__call__).bind(None, train=True)
    except TypeError as error:
        raise InputError(
            f"{type(network).__name__}.__call__ does not take (images, train=True) ({error}); "
            "allowed: (self, x, train=False)"
        ) from error
    return network


def _kind(given: Any) -> str:
    is_nnx = any(base.__module__.startswith("flax.nnx") for base in type(given).__mro__)
    return (
        f"{type(given).__name__}, an NNX module"
        if is_nnx
        else f"an object of class {type(given).__name__}"
    )
