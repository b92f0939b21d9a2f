"""Requirements of a network's call: random streams, mutable collections, named axes.

Flax and JAX name a missing one in an error; the call is then repeated with it, under abstract
evaluation. Also: keyword arguments that the call ignores or refuses.
"""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors

from deepjax.analysis.network.adapter import MissingStream, UnexpectedWrite
from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Requirements:
    """Names of the requirements, in the order in which they were found."""

    streams: tuple[str, ...] = ()
    """Random streams, such as "dropout"."""
    written: tuple[str, ...] = ()
    """Collections that the call changes in evaluation."""
    axes: tuple[str, ...] = ()
    """Axes of collectives, such as BatchNorm(axis_name="batch"); each is bound with size 1."""
    ignored: tuple[str, ...] = ()
    """Keyword arguments that flax drops, with a warning, at `nn.vmap` and `nn.scan`."""
    refused: tuple[str, ...] = ()
    """Keyword arguments that were found on one inner module, and refused by another."""


_ASKED = (
    ("streams", MissingStream, re.compile("(.+)")),
    ("written", UnexpectedWrite, re.compile("(.+)")),
    ("streams", errors.InvalidRngError, re.compile(r'needs PRNG for "(.+)"')),
    (
        "written",
        errors.ModifyScopeVariableError,
        re.compile(r'because collection "(.+?)" is immutable'),
    ),
    ("axes", NameError, re.compile(r"unbound axis name: (.+?)(?:\. To fix|$)")),
    ("ignored", RuntimeWarning, re.compile(r'kwargs are not supported in \w+, so "(.+)" is')),
    ("refused", TypeError, re.compile(r"unexpected keyword argument '(.+?)'")),
)


def find_requirements(
    attempt: Callable[[Requirements], Any],
    requirements: Requirements = Requirements(),
    refusable: Collection[str] = (),
) -> tuple[Any, Requirements]:
    """(result of `attempt`, its requirements): repeated until no requirement is missing.

    refusable: keyword arguments that may be refused; refusal of any other is an error.
    Raises InputError where evaluation changes batch statistics, and any other error of `attempt`.
    """
    ours = True  # whether flax's warnings concern arguments of the network, not of inner modules
    while True:
        try:
            with warnings.catch_warnings():
                if ours:
                    warnings.filterwarnings("error", "kwargs are not supported", RuntimeWarning)
                return attempt(requirements), requirements
        except tuple(raised for _, raised, _ in _ASKED) as error:
            more = _with_missing(requirements, error, refusable)
            if more is None and ours and isinstance(error, RuntimeWarning):
                ours, more = False, dataclasses.replace(requirements, ignored=())
            if more is None:
                raise
            requirements = more


def _with_missing(
    requirements: Requirements, error: Exception, refusable: Collection[str]
) -> Requirements | None:
    for kind, raised, pattern in _ASKED:
        found = pattern.search(str(error)) if isinstance(error, raised) else None
        if (
            found is None
            or found[1] in getattr(requirements, kind)
            or (kind == "refused" and found[1] not in refusable)
        ):
            continue
        if found[1] == "batch_stats":
            raise InputError(
                "evaluation writes the batch statistics, so that some batch norm is in training; "
                "its switch was not found: set it by Network(module, eval_kwargs={...}, "
                "train_kwargs={...})"
            ) from error
        return dataclasses.replace(
            requirements, **{kind: (*getattr(requirements, kind), *found[1].split(", "))}
        )
    return None


def bind_axes(call: Callable[[], Any], axes: tuple[str, ...]) -> Any:
    """The result of `call` with the unbound axes among these bound with size 1."""
    for name in axes:
        if not _is_bound(name):
            call = functools.partial(_bound, call, name)
    return call()


def _bound(call: Callable[[], Any], name: str) -> Any:
    found = jax.vmap(lambda _: call(), axis_name=name)(jnp.zeros(1))
    return jax.tree.map(lambda leaf: leaf[0], found)


def _is_bound(name: str) -> bool:
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True
