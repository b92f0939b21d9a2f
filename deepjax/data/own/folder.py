"""Folders of classes, as torchvision's ImageFolder reads them, with or without train and val."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deepjax.data.own.examples import Examples, Files
from deepjax.data.own.grouping import TEST_NAMES, TRAIN_NAMES
from deepjax.errors import InputError

FORMS = (
    "a folder with a folder of JPEG or PNG images for each class (or train/ and val/ of such), a "
    "CSV file with the columns path and label, tar or Parquet files, a data set saved by Hugging "
    "Face's datasets, or an .npz file"
)
READABLE = (".jpg", ".jpeg", ".png")
OTHER_IMAGES = (
    ".avif", ".bmp", ".gif", ".heic", ".pgm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip


def index_folder(root: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The classes and the splits of a folder; classes and files are sorted by name.

    A folder that has nothing but folders of `TRAIN_NAMES` and `TEST_NAMES`, in any case, has
    splits; of several for testing the first is taken. Images may lie in folders within that of
    their class. Hidden files and files that are no images are ignored. Raises InputError for a
    folder without class folders, for a class without images, for a class of the test folder that
    the training folder lacks, and for images that are neither JPEG nor PNG.
    """
    folders = _folders(root)
    by_name = {name.lower(): name for name in folders}
    train = next((by_name[name] for name in TRAIN_NAMES if name in by_name), None)
    test = next((by_name[name] for name in TEST_NAMES if name in by_name), None)
    others = [name for name in folders if name.lower() not in (*TRAIN_NAMES, *TEST_NAMES)]
    if train is None or (others and test is None):
        return tuple(folders), {"train": _examples(root, "", folders, folders)}
    if others:
        raise InputError(
            f"{root} has the folders {train} and {test}, and also {others[0]}; allowed: splits, or "
            "one for each class"
        )
    names = _folders(root / train)
    splits: dict[str, Examples] = {"train": _examples(root, train, names, names)}
    if test is not None:
        there = _folders(root / test)
        if unknown := [name for name in there if name not in names]:
            raise InputError(
                f"{root / test} has a folder for the class {unknown[0]!r}, {root / train} has "
                "none; allowed: the classes of the training folder"
            )
        splits["test"] = _examples(root, test, names, there)
    return tuple(names), splits


def _folders(root: Path) -> list[str]:
    """The names of the folders in a folder, sorted. Raises InputError where there are none."""
    try:
        with os.scandir(root) as entries:
            found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise InputError(f"{root} cannot be read: {error.strerror}") from error
    if not found:
        raise InputError(f"{root} has no folders in it; allowed: {FORMS}")
    for name in found:
        if not name.isprintable():  # bytes that are not UTF-8, too
            raise InputError(f"{root} has a folder {name!r}; allowed: names of one line, in UTF-8")
    return found


def _examples(root: Path, split: str, names: Sequence[str], there: Sequence[str]) -> Files:
    """The images of the class folders that are there; names: of all classes."""
    paths: list[str] = []
    labels: list[int] = []
    for name in there:
        of_class = list(_image_paths(root, os.path.join(split, name)))
        if not of_class:
            raise InputError(
                f"{root / split / name} has no JPEG or PNG images; add some, or remove the folder"
            )
        paths += of_class
        labels += [names.index(name)] * len(of_class)
    return Files(np.array(labels, np.int32), root, paths)


def _image_paths(root: Path, folder: str) -> Iterator[str]:
    """The JPEG and PNG files of a folder and the folders in it, relative to the root, sorted."""
    seen: set[tuple[int, int]] = set()  # of links that lead back
    for parent, folders, files in os.walk(root / folder, followlinks=True, onerror=_refuse):
        relative, state = os.path.relpath(parent, root), os.stat(parent)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in OTHER_IMAGES:
                raise InputError(
                    f"{os.path.join(parent, name)} is neither JPEG nor PNG; convert such images, "
                    "or move them away"
                )
            if suffix in READABLE and not name.startswith("."):
                yield os.path.join(relative, name)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
