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
    Of several splits for testing the first of `TEST_NAMES` is taken. Rows may all be for tests.
    Raises InputError for a class that the test split alone has where there are rows for training,
    and for a class that is none of `names`.
    """
    test = next((name for name in TEST_NAMES if name in splits), None)
    rows = {
        split: [row for row, each in enumerate(splits) if each == name]
        for split, name in (("train", "train"), ("test", test))
    }
    there = {split: {labels[row] for row in of_split} for split, of_split in rows.items()}
    if rows["train"] and (alone := sorted(there["test"] - there["train"])):
        raise InputError(
            f"{where} has the class {alone[0]!r} in its test split alone; allowed: classes of the "
            "training split"
        )
    found = there["train"] or there["test"]
    names = tuple(names) or class_names(found)
    if unknown := sorted(found - set(names)):
        raise InputError(
            f"{where} has the class {unknown[0]!r}; allowed: its classes by name, "
            f"{shown_names(names)}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    return names, {
        split: make(np.array([numbers[labels[row]] for row in of_split], np.int32), of_split)
        for split, of_split in rows.items()
        if of_split
    }


def split_folders(
    where: Path, folders: Sequence[str], folders_in: Callable[[str], Collection[str]]
) -> dict[str, str]:
    """The folder of "train" and of "test" among folders; {} where the folders are classes.

    Folders are splits where all have names of `TRAIN_NAMES` and `TEST_NAMES`, in any case; of
    several for testing the first is taken. Without one for training they are so where no images lie
    in them directly. folders_in: the folders in a folder, none where it has images itself. Raises
    InputError for splits next to other folders, for two folders of one split, and for folders that
    look like splits of other names.
    """
    train = [name for name in folders if name.lower() in TRAIN_NAMES]
    test = [name for each in TEST_NAMES for name in folders if name.lower() == each]
    others = [name for name in folders if name not in (*train, *test)]
    if train and test and others:
        raise InputError(
            f"{where} has the folders {train[0]} and {test[0]}, and also {others[0]}; allowed: "
            "splits, or one for each class"
        )
    if others or not (train or all(folders_in(name) for name in test)):
        _refuse_other_splits(where, folders, folders_in)
        return {}
    same = train, [name for name in test if name.lower() == test[0].lower()]
    if twice := next((names for names in same if len(names) > 1), None):
        raise InputError(
            f"{where} has the folders {twice[0]} and {twice[1]}, of one split; keep one of them"
        )
    return {split: names[0] for split, names in (("train", train), ("test", test)) if names}


def _refuse_other_splits(
    where: Path, folders: Sequence[str], folders_in: Callable[[str], Collection[str]]
) -> None:
    """Raise InputError for folders such as train and dev, which hold the same classes."""
    if len(folders) < 2 or not any(map(_split_in_name, folders)):
        return
    if common := set.intersection(*(set(folders_in(name)) for name in folders)):
        raise InputError(
            f"{where} has the folders {shown_names(folders)} with a folder {min(common)} in each; "
            f"allowed: splits named train and {', '.join(TEST_NAMES)}, or a folder for each class "
            "with images in it"
        )


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
