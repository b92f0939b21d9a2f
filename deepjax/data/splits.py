"""Parts of splits, written as tfds writes them: 'train', 'train[:400]', 'train[80%:]', 'train[400:]+validation'."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from deepjax.errors import InputError

SplitName = Literal["train", "test"]
Range = tuple[str, int, int]  # split of the builder, first record, and the record after the last

_BOUND = r"(?:-?\d{1,12}|-?(?:100|\d{1,2})%)?"
_PART = re.compile(rf"([\w-]+)(\[(?!:\]){_BOUND}:{_BOUND}\])?", re.ASCII)
ALLOWED = "a split such as 'train', a part of one such as 'train[:400]' or 'train[80%:]', or several joined by '+'"


def parse_split(expression: str) -> list[tuple[str, bool]]:
    """The builder's splits that an expression takes records from, and whether it takes all of them. ValueError for other text.

    >>> parse_split("train[400:] + validation")
    [('train', False), ('validation', True)]
    """
    parts = [_PART.fullmatch(part.strip()) for part in expression.split("+")]
    found = [(part[1], part[2] is None) for part in parts if part]
    if len(found) < len(parts) or "all" in dict(found):  # tfds's 'all' takes the test images too
        raise ValueError(f"{expression!r} names no split")
    return found


def check_disjoint(name: str, parts: Mapping[SplitName, Sequence[Range]]) -> None:
    """Raise InputError where training and test images overlap, or where one of the two has a record twice."""
    labelled = [(f"{which}_split", part) for which, ranges in parts.items() for part in ranges]
    for (one, (split, *first)), (other, (same, *second)) in itertools.combinations(labelled, 2):
        start, stop = max(first[0], second[0]), min(first[1], second[1])
        if split == same and start < stop:
            which = f"{one} holds" if one == other else "train_split and test_split both hold"
            twice = " twice" if one == other else ""
            raise InputError(
                f"dataset {name!r}: {which} records {start} to {stop - 1} of {split!r}{twice}; give parts that do not overlap"
            )
