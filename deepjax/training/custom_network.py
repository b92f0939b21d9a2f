"""Makes and checks a network that is not in the registry."""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from deepjax.errors import InputError, describe_error, unknown_name_error
from deepjax.models.nnx import NnxInLinen


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


def import_network(name: str) -> Callable[..., nn.Module]:
    """The maker of the network package.module:Class, a linen or an NNX module, for `make`.

    The current folder is searched too, as by `python -m`. A class of linen takes num_classes and
    calls (images, train); one of NNX takes num_classes and rngs, and calls (images). `dtype` is
    passed where the class takes it. Raises InputError for what cannot be imported, and for what is
    no class of either kind.
    """
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"model is {name!r}, and {module_name} cannot be imported ({describe_error(error)}); "
            "the current folder and PYTHONPATH are searched"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [each for each in vars(found) if not each.startswith("_")]
            raise unknown_name_error(f"class in {module_name}", part, names)
        found = getattr(found, part)
    if isinstance(found, type) and issubclass(found, nnx.Module):
        return _maker(name, functools.partial(_in_linen, found), found.__init__)
    if not callable(found):
        raise InputError(f"model is {name!r}, {_kind(found)}; allowed: a class of linen or NNX")
    return _maker(name, found, found)


def _in_linen(network: type[nnx.Module], **fields: Any) -> nn.Module:
    return NnxInLinen(network, tuple(fields.items()))


def _maker(
    name: str, build: Callable[..., Any], signed: Callable[..., Any]
) -> Callable[..., nn.Module]:
    """A maker that refuses fields which `signed` does not take; dtype is left out if float32."""
    takes = inspect.signature(signed).parameters
    anything = any(each.kind == inspect.Parameter.VAR_KEYWORD for each in takes.values())

    def make(**fields: Any) -> nn.Module:
        if "dtype" not in takes and not anything:
            dtype = jnp.dtype(fields.pop("dtype", jnp.float32))
            if dtype != jnp.float32:
                raise InputError(
                    f"precision is {dtype.name}; allowed: float32 for {name}, which takes no dtype"
                )
        for field in fields:
            if field not in takes and not anything:
                names = [each for each in takes if each not in ("self", "rngs", "parent", "name")]
                raise unknown_name_error(f"field of {name}", field, names)
        return build(**fields)

    return make
