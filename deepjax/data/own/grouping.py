"""Rows of a split and a class name each, as classes and splits of examples."""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.errors import InputError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test", "testing")
MOST_SHOWN = 5  # names of classes in a message
Make = Callable[[np.ndarray, list[int]], Examples]
"""Examples of labels and of rows."""


def group(
    where: Path,
    splits: Sequence[str],
    labels: Sequence[str],
    make: Make,
    names: Sequence[str] = (),
) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The class names and the examples of each split; splits: "train" or a name of `TEST_NAMES`.

    names: of all classes, where their order is known; else names are sorted, and numbers by value.
    Of several splits for testing the first of `TEST_NAMES` is taken. Raises InputError without rows
    for training, and for a class that the test split alone has.
    """
    test = next((name for name in TEST_NAMES if name in splits), None)
    rows = {
        split: [row for row, each in enumerate(splits) if each == name]
        for split, name in (("train", "train"), ("test", test))
    }
    there = {split: {labels[row] for row in of_split} for split, of_split in rows.items()}
    if not rows["train"]:
        raise InputError(f"{where} has no images for training; allowed: some of split 'train'")
    if alone := sorted(there["test"] - there["train"]):
        raise InputError(
            f"{where} has the class {alone[0]!r} in its test split alone; allowed: classes of the "
            "training split"
        )
    names = tuple(names) or class_names(there["train"])
    numbers = {name: number for number, name in enumerate(names)}
    return names, {
        split: make(np.array([numbers[labels[row]] for row in of_split], np.int32), of_split)
        for split, of_split in rows.items()
        if of_split
    }


def shown_names(names: Sequence[str]) -> str:
    """The first names of classes, for a message.

    >>> shown_names(["ant", "bee"])
    'ant, bee'
    """
    rest = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def class_names(labels: Collection[str]) -> tuple[str, ...]:
    """The class names, sorted; numbers by value."""
    if all(name.isdecimal() for name in labels):
        return tuple(sorted(labels, key=lambda name: (int(name), name)))
    return tuple(sorted(labels))


def splits_in_names(where: Path, names: Sequence[str]) -> list[str]:
    """The split that the name of each file has in it, as in train-00000-of-00004 or test/0.parquet.

    Without any all are for training. Raises InputError where some have one and others have none.

    >>> splits_in_names(Path("."), ["validation-0.parquet", "train/0.parquet"])
    ['validation', 'train']
    """
    found = [_split_in_name(name) for name in names]
    if not any(found):
        return ["train"] * len(found)
    if "" in found:
        allowed = ", ".join((*TRAIN_NAMES, *TEST_NAMES))
        raise InputError(
            f"{where} has {names[found.index('')]}, whose name has no split in it, while others "
            f"have one; allowed: {allowed}; move the others away"
        )
    return found


def _split_in_name(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    found = next((word for word in words if word in (*TRAIN_NAMES, *TEST_NAMES)), "")
    return "train" if found in TRAIN_NAMES else found
