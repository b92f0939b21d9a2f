"""Parameters by patterns of their paths: which are frozen, and which learn at other rates.

A pattern is compared with a path such as "stage1_block1/conv1/kernel"; "*" stands for any
characters. "classifier" means the last layer of the network and of each auxiliary head. A pattern
that begins with "!" means all parameters that do not match the rest of it.
"""

import fnmatch
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError, unknown_name_error
from deepjax.training.config_groups import TransferConfig

CLASSIFIER = "classifier"  # the pattern; paths of parameters have two parts or more


def matches(path: str, pattern: str, classifier: Collection[str] = ()) -> bool:
    """Whether a parameter's path matches a pattern, or does not match it after "!".

    classifier: paths of the parameters of the classifier.
    """
    if pattern.startswith("!"):
        return not matches(path, pattern[1:], classifier)
    if pattern == CLASSIFIER:
        return path in classifier
    return fnmatch.fnmatchcase(path, pattern)


def rate_factors(
    params: Any, transfer: TransferConfig, classifier: Collection[str] = ()
) -> dict[str, float]:
    """By path of a parameter: the factor of its learning rate, the product of those that match.

    0 where it is frozen. params: arrays or their shapes. Raises InputError for a pattern that
    matches no parameter, and if all are frozen.
    """
    factors, paths = transfer.factors(), paths_of(params)
    for pattern in (*transfer.freeze, *factors):
        given = pattern.removeprefix("!")
        if given == CLASSIFIER and not classifier:
            raise InputError(
                f"pattern {pattern!r} fits no parameter: none has a shape that depends on the "
                "number of classes, so the last layer is not known; name it by its path, such as "
                f"{paths[-1].rpartition('/')[0]!r}"
            )
        if not any(matches(path, given, classifier) for path in paths):
            raise unknown_name_error("pattern of parameters", given, [*paths, CLASSIFIER])

    def factor(path: str) -> float:
        if any(matches(path, pattern, classifier) for pattern in transfer.freeze):
            return 0.0
        matching = [f for pattern, f in factors.items() if matches(path, pattern, classifier)]
        return float(np.prod(matching))

    found = {path: factor(path) for path in paths}
    if not any(found.values()):
        options = {"freeze": transfer.freeze, "rate_factors": transfer.rate_factors}
        given = " and ".join(f"{name} is {value}" for name, value in options.items() if value)
        raise InputError(
            f"{given}, which freezes every parameter; allowed: patterns that leave some, such as "
            f"'!{CLASSIFIER}'"
        )
    return found


def stop_frozen(params: Any, frozen: Collection[str]) -> Any:
    """The parameters, without a gradient where their path is among the frozen ones."""
    return map_by_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if path in frozen else leaf, params
    )


def map_by_path(function: Callable[[str, Any], Any], params: Any) -> Any:
    """A function of path and leaf over the parameters."""
    flat = flatten_dict(params)
    return unflatten_dict({path: function(_joined(path), leaf) for path, leaf in flat.items()})


def paths_of(params: Any) -> list[str]:
    """The paths of the parameters, such as "stage1_block1/conv1/kernel"."""
    return [_joined(path) for path in flatten_dict(params)]


def _joined(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
