"""Folders of this machine for copies of what is in a bucket."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deepjax.errors import InputError
from deepjax.paths import user_cache_folder

VARIABLE = "DEEPJAX_STAGING_DIR"


def staging_root() -> Path:
    """$DEEPJAX_STAGING_DIR, or deepjax/staging in the user's cache folder."""
    named = os.environ.get(VARIABLE, "")
    return Path(named).absolute() if named else user_cache_folder() / "deepjax" / "staging"


def copy_folder(url: str) -> Path:
    """The folder for a copy of what is at a URL, in the user's cache folder."""
    return user_cache_folder() / "deepjax" / "copies" / _digest(url)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder, and exclude other processes of this machine from such a block.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def new_staging_folder(url: str, process: int) -> Path:
    """A new folder for one process of a run. Raises InputError where none can be made."""
    try:
        staging_root().mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_prefix(url, process), dir=staging_root()))
    except OSError as error:
        raise InputError(
            f"cannot write {staging_root()}: {error.strerror}; "
            f"free space, or name another folder by {VARIABLE}"
        ) from error


def delete_other_folders(url: str, process: int, kept: Path) -> None:
    """Delete the folders that killed processes left of a run."""
    for path in staging_root().glob(f"{_prefix(url, process)}*"):
        if path != kept:
            shutil.rmtree(path, ignore_errors=True)


def _prefix(url: str, process: int) -> str:
    return f"{_digest(url)}-{process}-"


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:16]
