"""Parts of splits in tfds's notation: 'train', 'train[:400]', 'train[80%:]', 'train+validation'."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deepjax.errors import InputError

SplitName = Literal["train", "test"]
Range = tuple[str, int, int]  # split of the builder, first record, and the record after the last

# tfds takes the 400 of 'train[400:50%]' as 400 %
_RECORDS, _PERCENT = (
    r"(?:-?\d{1,12})?",
    r"(?:-?(?:100|\d{1,2})%)?",
)
_PART = re.compile(
    rf"([\w-]+)(\[(?!:\])(?:{_RECORDS}:{_RECORDS}|{_PERCENT}:{_PERCENT})\])?", re.ASCII
)
ALLOWED_SPLITS = (
    "a split such as 'train', a part of one such as 'train[:400]' or 'train[60%:80%]', or several "
    "joined by '+'"
)


def parse_split(expression: str) -> list[tuple[str, bool]]:
    """The builder's splits that an expression uses, and whether it uses all of their records.

    Raises ValueError for other text.

    >>> parse_split("train[400:] + validation")
    [('train', False), ('validation', True)]
    """
    parts = [_PART.fullmatch(part.strip()) for part in expression.split("+")]
    found = [(part[1], part[2] is None) for part in parts if part]
    if len(found) < len(parts) or "all" in dict(found):  # tfds's 'all' takes the test images too
        raise ValueError(f"{expression!r} names no split")
    return found


def record_ranges(
    name: str, split: SplitName, expression: str, of_builder: Mapping[str, Any]
) -> list[Range]:
    """The record ranges of an expression in a builder's splits (`builder.info.splits`), in order.

    Raises InputError for a split that the builder does not have, for a part beyond its records, and
    for an empty one.
    """
    import tensorflow_datasets as tfds

    sizes = {each: info.num_examples for each, info in of_builder.items()}
    try:
        parts = tfds.core.ReadInstruction.from_spec(expression).to_absolute(of_builder)  # pyright: ignore[reportArgumentType]
        found = [
            (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
            for part in parts
        ]
        if any(start >= stop for _, start, stop in found):
            raise ValueError("a part is empty")
    except ValueError as error:
        there = ", ".join(f"{each!r} with {size} records" for each, size in sizes.items())
        raise InputError(
            f"dataset {name!r}: {split}_split is {expression!r} ({error}); allowed: {there}, or "
            "parts of these"
        ) from error
    return found


def check_disjoint(name: str, parts: Mapping[SplitName, Sequence[Range]]) -> None:
    """Raise InputError where training and test images overlap, or one has a record twice."""
    labelled = [(f"{which}_split", part) for which, ranges in parts.items() for part in ranges]
    for (one, first), (other, second) in itertools.combinations(labelled, 2):
        for split, start, stop in shared_records([first], [second]):
            which = f"{one} holds" if one == other else "train_split and test_split both hold"
            twice = " twice" if one == other else ""
            raise InputError(
                f"dataset {name!r}: {which} records {start} to {stop - 1} of {split!r}{twice}; "
                "give parts that do not overlap"
            )


def shared_records(first: Sequence[Range], second: Sequence[Range]) -> list[Range]:
    """The records that are in both.

    >>> shared_records([("train", 0, 50)], [("test", 0, 9), ("train", 45, 60)])
    [('train', 45, 50)]
    """
    pairs = itertools.product(first, second)
    found = [(a[0], max(a[1], b[1]), min(a[2], b[2])) for a, b in pairs if a[0] == b[0]]
    return [part for part in found if part[1] < part[2]]
