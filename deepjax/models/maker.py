"""Networks made of a class of linen or NNX, or by a function; the fields that these take."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from deepjax.errors import InputError, describe_error, require, unknown_name_error
from deepjax.models.nnx import NnxInLinen

ALLOWED = "a class or function of a linen module, or a class of NNX"
OF_FLAX = ("self", "parent", "name", "rngs")  # arguments that are no fields of a network


def make_linen(name: str, build: Callable[..., Any], fields: Mapping[str, Any]) -> nn.Module:
    """A linen network from a class of linen or NNX, or from a function of its fields.

    A class of NNX takes `rngs` too, and is wrapped in `NnxInLinen`. float32 as `dtype` is left out
    where that is not a field. name: of the network, for messages. Raises InputError for a field
    that is unknown or missing, another precision, a class of NNX without `rngs`, any error of
    `build`, and for what is no linen module.
    """
    takes, fields = _parameters(build), dict(fields)
    anything = any(each.kind == inspect.Parameter.VAR_KEYWORD for each in takes.values())
    if "dtype" in fields and "dtype" not in takes and not anything:
        dtype = jnp.dtype(fields.pop("dtype"))
        allowed = f"float32 for {name}, which takes no dtype"
        require(dtype == jnp.float32, "precision", dtype.name, allowed)
    names = [each for each in takes if each not in OF_FLAX]
    if "num_classes" in fields and "num_classes" not in takes and not anything:
        raise InputError(
            f"{name} takes no num_classes, which every training sets; give the class a field "
            "`num_classes: int`, the size of its last layer"
        )
    for field in fields:
        if field not in names and not anything:
            raise unknown_name_error(f"field of {name}", field, names)
    missing = [field for field in required_fields(build) if field not in fields]
    if missing:
        raise InputError(
            f"field {missing[0]!r} of {name} is not given and has no default; give it by "
            f"--model-args {missing[0]}=VALUE"
        )
    if is_nnx(build):
        require("rngs" in takes or anything, "model", name, "a class of NNX that takes rngs")
        return NnxInLinen(build, tuple(fields.items()))
    try:
        made = build(**fields)
    except InputError:
        raise
    except Exception as error:  # whatever the user's class raises
        raise InputError(f"{name} cannot be made ({describe_error(error)})") from error
    require(isinstance(made, nn.Module), "build", build, ALLOWED)
    return made


def required_fields(build: Callable[..., Any]) -> list[str]:
    """The fields without a default, in their order. Raises InputError for what is no function."""
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [
        field
        for field, each in _parameters(build).items()
        if field not in OF_FLAX and each.default is each.empty and each.kind not in several
    ]


def is_nnx(build: Any) -> bool:
    """Whether it is a class of NNX."""
    return isinstance(build, type) and issubclass(build, nnx.Module)


def _parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    if not callable(build) or isinstance(build, nn.Module | nnx.Module):
        given = f"an object of class {type(build).__name__}"
        raise InputError(f"build is {given}; allowed: {ALLOWED}")
    try:  # the class of NNX's classes has a signature of its own
        return inspect.signature(build.__init__ if is_nnx(build) else build).parameters
    except (TypeError, ValueError) as error:  # of classes that are not written in Python
        raise InputError(f"build is {build!r}; allowed: {ALLOWED}") from error
