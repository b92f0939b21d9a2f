"""Images that `deepjax data convert` wrote: ArrayRecord shards in the order of their splits."""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.data.shards import INFO, allow_open_shards, list_splits, read_info
from deepjax.errors import InputError, describe_error

LABEL_NAMES = "label_names"  # in dataset_info.json of converted data only
FORM = "form"


@dataclasses.dataclass(frozen=True)
class Records(Examples):
    """Encoded images, each a record of ArrayRecord."""

    source: Any
    """An `ArrayRecordDataSource`: an image for each row."""
    rows: np.ndarray
    bytes_of_rows: np.ndarray
    names: list[str]
    """Of all rows, in the data that were converted."""

    def name(self, index: int) -> str:
        """The name in the data that were converted."""
        return self.names[self.rows[index]]

    def encoded(self, index: int) -> bytes:
        """The record. Raises InputError where it is damaged."""
        try:
            return self.source[int(self.rows[index])]
        except RuntimeError as error:
            reason = describe_error(error)
            raise InputError(
                f"{self.name(index)} cannot be read ({reason}); convert the data again"
            ) from error

    def sizes(self) -> list[int]:
        """The sizes of the records."""
        return self.bytes_of_rows[self.rows].tolist()

    def part(self, rows: np.ndarray) -> "Records":
        """The images of these rows."""
        mine = self.labels[rows], self.source, self.rows[rows]
        return Records(*mine, self.bytes_of_rows, self.names)


def is_converted(folder: Path) -> bool:
    """Whether a folder was written by `deepjax data convert`."""
    return any((folder / rows_file(split)).is_file() for split in ("train", "test"))


def index_converted(folder: Path) -> tuple[str, tuple[str, ...], dict[str, Examples]]:
    """The form of what was converted, its classes, and its splits in the order of training.

    Raises InputError for a missing or damaged file.
    """
    info, splits = read_info(folder), {}
    if not {FORM, LABEL_NAMES} <= info.keys():
        raise InputError(f"{folder / INFO} has no {LABEL_NAMES}; convert the data again")
    names = tuple(map(str, info[LABEL_NAMES]))
    by_split = list_splits(folder)
    allow_open_shards(sum(map(len, by_split.values())), str(folder))
    for split, shards in by_split.items():
        if missing := [shard.path for shard in shards if not shard.path.is_file()]:
            raise InputError(f"{missing[0]} is missing; convert the data again")
        labels, sizes, of_rows = load_rows(folder / rows_file(split))
        if not len(labels) == len(sizes) == len(of_rows) == sum(each.count for each in shards):
            raise InputError(f"{folder / rows_file(split)} is of other shards; convert again")
        source = _open([shard.path for shard in shards])
        splits[split] = Records(labels, source, np.arange(len(labels)), sizes, of_rows)
    return str(info[FORM]), names, splits


def _open(paths: list[Path]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource([str(path) for path in paths])
    except (RuntimeError, ValueError) as error:
        folder, reason = paths[0].parent, describe_error(error)
        raise InputError(f"{folder} cannot be read ({reason}); convert the data again") from error


def rows_file(split: str) -> str:
    """The name of the file with labels, sizes and names of a split."""
    return f"{split}.rows.npz"


def write_rows(path: Path, examples: Examples, sizes: list[int]) -> None:
    """Labels, sizes and names, of which a null byte ends each, for it is in no name of a file."""
    names = "\0".join(examples.name(i) for i in range(len(examples)))
    encoded = np.frombuffer(names.encode(errors="surrogateescape"), np.uint8)
    with path.open("wb") as file:
        np.savez(file, labels=examples.labels, sizes=np.array(sizes, np.int64), names=encoded)


def load_rows(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, sizes and names of the rows of a split. Raises InputError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            labels, sizes, names = (stored[name] for name in ("labels", "sizes", "names"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = describe_error(error)
        raise InputError(f"{path} cannot be read ({reason}); convert the data again") from error
    return labels, sizes, names.tobytes().decode(errors="surrogateescape").split("\0")
