"""Encoded images with labels, read one by one; the index is the example's id."""

import abc
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.data.threads import thread_map
from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Examples(Sequence[dict[str, Any]]):
    """Records {"image": bytes, "label": int}, as `EncodedSplit` reads them."""

    labels: np.ndarray
    """(count,) int32."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        return {"image": self.encoded(index), "label": int(self.labels[index])}

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """The image's name in the user's data, for messages."""

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """The bytes of the image file. Raises InputError where they cannot be read."""

    def content(self, index: int) -> bytes:
        """What the fingerprint is of: the bytes of the file."""
        return self.encoded(index)

    @abc.abstractmethod
    def sizes(self) -> list[int]:
        """The number of bytes of each image. Raises InputError where they cannot be read."""

    @abc.abstractmethod
    def part(self, rows: np.ndarray) -> "Examples":
        """The examples of these rows, in their order."""


@dataclasses.dataclass(frozen=True)
class Files(Examples):
    """Image files, by their paths relative to `root`."""

    root: Path
    paths: list[str]

    def name(self, index: int) -> str:
        """The path relative to the root."""
        return self.paths[index]

    def encoded(self, index: int) -> bytes:
        """The bytes of the file."""
        try:
            with open(os.path.join(self.root, self.paths[index]), "rb") as file:
                return file.read()
        except OSError as error:
            raise _unreadable(self.root / self.paths[index], error) from error

    def sizes(self) -> list[int]:
        """The sizes of the files."""
        return thread_map(self._size, self.paths)

    def _size(self, path: str) -> int:
        try:
            return os.stat(os.path.join(self.root, path)).st_size
        except OSError as error:
            raise _unreadable(self.root / path, error) from error

    def part(self, rows: np.ndarray) -> "Files":
        """The files of these rows."""
        return Files(self.labels[rows], self.root, [self.paths[row] for row in rows.tolist()])


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read: {error.strerror or error}")
