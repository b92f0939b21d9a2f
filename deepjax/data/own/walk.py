"""The files in a folder and in the folders in it."""

import os
from collections.abc import Iterator
from typing import NoReturn

from deepjax.errors import InputError


def files_below(folder: str) -> Iterator[str]:
    """Paths of the files, sorted within each folder; without hidden files and hidden folders.

    Links are followed, and each folder is read once. Raises InputError for a folder that cannot be
    read.
    """
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse_unreadable):
        state = os.stat(parent)
        if (state.st_dev, state.st_ino) in seen:  # by a link that leads back
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files) if name[0] != ".")


def refuse_unreadable(error: OSError) -> NoReturn:
    """Raise InputError for the error of a file or folder that cannot be read."""
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
