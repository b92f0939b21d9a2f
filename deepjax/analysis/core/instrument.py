"""What all instruments have in common: errors for the arguments of earlier versions."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from deepjax.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

RETIRED = {
    "train": "mode=EVAL or mode=TRAIN (train=False or train=True)",
    "bn": 'mode=EVAL, TRAIN or Ghost(k) (bn="running", "batch" or k)',
    "rngs": "key=, one key for all random streams",
    "seed": "key=jax.random.key(seed)",
    "modules": "layers=",
    "blocks": "layers=",
    "layer": "layers=",
    "inputs": "batch=, a batch or the inputs alone",
    "batches": "batch=, one batch or a list of batches",
    "images": "batch=",
    "batch": "examples=, the number of examples",
}
"""Arguments of the first version, and what is given in their place."""


def instrument(function: Callable[P, R]) -> Callable[P, R]:
    """Raise InputError, naming the new form, for an argument that an earlier version had."""
    parameters = inspect.signature(function).parameters
    positional = [name for name, each in parameters.items() if each.kind is not each.KEYWORD_ONLY]
    by_name = [name for name in parameters if name not in positional]
    retired = set(RETIRED) if "examples" in parameters else set(RETIRED) - {"batch"}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name in retired and name not in parameters:
                raise InputError(
                    f"{function.__name__} no longer takes {name}=; use {RETIRED[name]}"
                )
        if len(args) > len(positional):
            raise InputError(
                f"{function.__name__} is called with {len(args)} positional arguments; allowed: "
                f"{', '.join(positional)}, and by name {', '.join(by_name)}"
            )
        return function(*args, **kwargs)

    return checked
