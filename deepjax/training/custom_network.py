"""Makes and checks a network that is not in the registry."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from deepjax.analysis.network.module import initialise
from deepjax.errors import InputError, describe_error, unknown_name_error
from deepjax.models.maker import make_linen
from deepjax.training.config import is_own

KEPT = (
    *("params", "batch_stats"),  # by a training
    *("auxiliary", "features", "intermediates", "perturbations"),  # into which networks sow
)


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
    try:
        network = make(**fields)
    except InputError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise InputError(f"make, {name}, cannot be called ({describe_error(error)})") from error
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
    if not callable(found):
        raise InputError(f"model is {name!r}, {_kind(found)}; allowed: a class of linen or NNX")
    return lambda **fields: make_linen(name, found, fields)


@contextlib.contextmanager
def errors_of_own_network(model: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn any error of an own network's code into an InputError of one line.

    For blocks that trace it. shape: of its images, for the message. Errors of networks of deepjax
    keep their traceback.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever the user's network raises
        if not is_own(model):
            raise
        raise InputError(
            f"{model} cannot be trained on images of {shape}: {describe_error(error)}"
        ) from error


def require_known_collections(model: str, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise InputError for an own network with state that a training would not keep.

    That is any collection but "params", "batch_stats", and those into which it only sows. shape: of
    an image. Networks of deepjax have no other.
    """
    if not is_own(model):
        return
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables: Any = jax.eval_shape(lambda x: initialise(network, x), images)
    others = [
        collection
        for collection, tree in variables.items()
        if collection not in KEPT
        and not all(isinstance(leaf, tuple) for leaf in flatten_dict(dict(tree)).values())  # sown
    ]
    if others:
        raise InputError(
            f"{model} has variables in {', '.join(map(repr, others))}, which a training does not "
            "keep from step to step; allowed: 'params' and 'batch_stats' (nnx.Param and "
            "nnx.BatchStat)"
        )
