"""Holm's correction of a family of claims for their number (Holm 1979)."""

from collections.abc import Mapping

from deepjax.study.stats.intervals import LEVEL


def holm_adjusted(p_values: Mapping[str, float], family: int = 0) -> dict[str, float]:
    """Adjusted p-values: a claim stands if its own is at most the level.

    family: number of claims of the family, if more than are given; those that are missing count as
    p = 1. The i-th smallest p-value (from 0) is multiplied by family - i, and no adjusted value is
    below one before it.

    >>> holm_adjusted({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    count, least, adjusted = max(family, len(p_values)), 0.0, {}
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = min(1.0, max(least, (count - i) * p))
        adjusted[name] = least
    return adjusted


def first_level(family: int, level: float = LEVEL) -> float:
    """The level that the smallest p-value of a family has to reach."""
    return level / family
