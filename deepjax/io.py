"""Atomic writes: a file is written completely or not at all, and outlasts a loss of power."""

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

from deepjax.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, synced; make its folder if it is missing.

    Raises InputError when the file cannot be written.
    """
    # Several tasks of a study may write the same file at the same time, on several machines and in
    # containers, where processes have equal numbers: one partial file each.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()  # it would keep a full disk full
        raise InputError(
            f"cannot write {path}: {error.strerror}; free space, or choose another --output-dir"
        ) from error


def sync_folder(folder: Path) -> None:
    """Sync the names of a folder's files to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
