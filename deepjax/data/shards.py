"""The shards of a prepared data set and their records, read without TensorFlow."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepjax.errors import InputError

INFO = "dataset_info.json"
_RECORDS_PER_READ = 64
SPARE_FILES = 256  # that a process opens besides shards: libraries, sockets, checkpoints, logs


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a split and the number of its records."""

    path: Path
    count: int


def read_info(folder: Path) -> dict[str, Any]:
    """The object in dataset_info.json of a prepared data set. Raises InputError if missing."""
    try:
        info = json.loads((folder / INFO).read_text())
        return {"name": str(info["name"]), "version": str(info["version"])} | info
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder} is no prepared data set: {INFO} is missing or unreadable "
            f"({type(error).__name__})"
        ) from error


def list_splits(folder: Path) -> dict[str, list[Shard]]:
    """The shards that each split should have, in order, with tfds's file names."""
    info = read_info(folder)
    try:
        # tfds writes no format for its old default
        form = info.get("fileFormat", "tfrecord")
        lengths = {
            str(split["name"]): [int(n) for n in split["shardLengths"]] for split in info["splits"]
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / INFO} lists no splits with their shards: prepare the data set again"
        ) from error
    return {
        split: [
            Shard(folder / f"{info['name']}-{split}.{form}-{i:05d}-of-{len(counts):05d}", count)
            for i, count in enumerate(counts)
        ]
        for split, counts in lengths.items()
    }


def read_records(path: Path) -> Iterator[bytes]:
    """The records of an ArrayRecord file in order. Raises InputError if missing or corrupt."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        for start in range(0, count, _RECORDS_PER_READ):
            yield from reader.read(start, min(start + _RECORDS_PER_READ, count))
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"shard {path.name} in {path.parent} cannot be read ({reason}); prepare the data set "
            "again"
        ) from error


def allow_open_shards(count: int, where: str) -> None:
    """Raise this process's limit of open files for so many shards, which stay open once read.

    The limit is often 1024; a process may raise it up to its hard limit. Raises InputError where
    that is too low, with `where` as the name of the data.
    """
    if sys.platform == "win32":
        return
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if resource.RLIM_INFINITY != hard < needed:
        raise InputError(
            f"{where} has {count:,} shards, each an open file, and a process may open {hard:,} "
            f"files here; allow {needed:,} (ulimit -n, Docker's --ulimit nofile)"
        )
    if resource.RLIM_INFINITY != soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def write_records(path: Path, records: Iterator[bytes], options: str = "group_size:1") -> None:
    """Write an ArrayRecord file in which each record can be read by itself, as tfds does.

    `options` of ArrayRecord; records of a group are compressed together.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
