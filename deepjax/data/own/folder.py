"""Folders of classes, as torchvision's ImageFolder reads them, with or without train and val."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deepjax.data.own.examples import Examples, Files
from deepjax.data.own.grouping import split_folders
from deepjax.data.own.walk import files_below, refuse_unreadable
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

    Which folders are splits `split_folders` says. Images may lie in folders within that of their
    class. Hidden files and files that are no images are ignored. Raises InputError as that does,
    for a folder without class folders, for a class without images, for a class of the test folder
    that the training folder lacks, and for images that are neither JPEG nor PNG.
    """
    folders = _folders(root)
    of_splits = split_folders(root, folders, lambda name: _folders_in(root / name))
    if not of_splits:
        return tuple(folders), {"train": _examples(root, "", folders, folders)}
    first, *_ = of_splits.values()
    names = _folders(root / first)
    splits: dict[str, Examples] = {}
    for split, folder in of_splits.items():
        there = _folders(root / folder)
        if unknown := [name for name in there if name not in names]:
            raise InputError(
                f"{root / folder} has a folder for the class {unknown[0]!r}, {root / first} has "
                "none; allowed: the classes of the training folder"
            )
        splits[split] = _examples(root, folder, names, there)
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


def _folders_in(folder: Path) -> list[str]:
    """The folders in a folder; none where it has images itself."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_image(entry.name):
                    return []
                if entry.is_dir() and not entry.name.startswith("."):
                    found.append(entry.name)
    except OSError as error:
        refuse_unreadable(error)
    return found


def is_image(name: str) -> bool:
    """Whether a file of this name is an image that can be read, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in READABLE


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
    start = len(os.path.join(root, ""))
    for path in files_below(os.path.join(root, folder)):
        if is_image(os.path.basename(path)):
            yield path[start:]
        elif path.lower().endswith(OTHER_IMAGES):
            raise InputError(
                f"{path} is neither JPEG nor PNG; convert such images, or move them away"
            )
