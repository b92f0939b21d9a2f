"""Parameters by patterns of their paths: which are frozen, and which learn at other rates.

A pattern is compared with a path such as "stage1_block1/conv1/kernel"; "*" stands for any
characters, and a pattern that begins with "!" means all parameters that do not match the rest of
it.
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError, unknown_name_error
from deepjax.training.config_groups import TransferConfig


def matches(path: str, pattern: str) -> bool:
    """Whether a parameter's path matches a pattern, or does not match it after "!"."""
    if pattern.startswith("!"):
        return not fnmatch.fnmatchcase(path, pattern[1:])
    return fnmatch.fnmatchcase(path, pattern)


def trainable(params: Any, freeze: Sequence[str]) -> Any:
    """By parameter: False where it matches a pattern of those that are frozen."""
    return _by_path(params, lambda path: not any(matches(path, each) for each in freeze))


def stop_frozen(params: Any, freeze: Sequence[str]) -> Any:
    """The parameters, without a gradient where they are frozen."""
    return jax.tree.map(
        lambda leaf, free: leaf if free else jax.lax.stop_gradient(leaf),
        params,
        trainable(params, freeze),
    )


def rate_factors(params: Any, transfer: TransferConfig) -> Any:
    """By parameter: the factor of its learning rate, the product of those that match; 0: frozen."""
    factors = transfer.factors()

    def factor(path: str) -> float:
        return float(
            np.prod([value for pattern, value in factors.items() if matches(path, pattern)])
        )

    learns = trainable(params, transfer.freeze)
    return jax.tree.map(lambda value, free: value * free, _by_path(params, factor), learns)


def check_patterns(params: Any, transfer: TransferConfig) -> None:
    """Raise InputError for a pattern that matches no parameter, or if all are frozen."""
    paths = ["/".join(map(str, path)) for path in flatten_dict(params)]
    for pattern in (*transfer.freeze, *transfer.factors()):
        if not any(matches(path, pattern) for path in paths):
            raise unknown_name_error("pattern of parameters", pattern, paths)
    if transfer.freeze and not any(jax.tree.leaves(trainable(params, transfer.freeze))):
        raise InputError(
            f"freeze is {transfer.freeze}, which freezes every parameter; allowed: patterns that "
            "leave some, such as '!head*'"
        )


def _by_path(params: Any, value: Callable[[str], Any]) -> Any:
    return unflatten_dict({path: value("/".join(map(str, path))) for path in flatten_dict(params)})
