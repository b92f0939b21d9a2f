"""Resumable rewriting of a prepared data set, shard by shard; a shard is complete or absent."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deepjax.data.fingerprint import FINGERPRINT_FILE
from deepjax.data.shards import INFO, Shard, list_splits, read_info, read_records, write_records
from deepjax.data.threads import progress, thread_map
from deepjax.errors import InputError

RecordReader = Callable[[Path], Iterator[bytes]]
ORIGIN = "origin.json"


def rewrite_dataset(
    source: Path,
    target: Path,
    read: RecordReader,
    change: Callable[[bytes], bytes],
    origin: Mapping[str, Any],
) -> None:
    """Write `change(record)` of every record in `source` to `target` as ArrayRecord.

    `read` reads a shard. Until it is complete the data set is in `unfinished.VERSION` next to the
    target, where the same call resumes and skips the shards that exist. Each shard is read back and
    compared before it gets its name. `origin` describes source and change. Raises InputError where
    it differs from that of the unfinished copy, where another process is writing, and where a shard
    cannot be read or has another number of records than it should.
    """
    work = target.with_name(f"unfinished.{target.name}")
    work.mkdir(parents=True, exist_ok=True)
    with claim_folder(work, {"source": _sizes(source), **origin}):
        shards = [shard for shards in list_splits(source).values() for shard in shards]
        with progress(
            f"writing {target.parent.name}", sum(shard.count for shard in shards)
        ) as advance:

            def write(shard: Shard) -> None:
                path = work / _new_name(shard.path)
                write_shard(
                    path, lambda: map(change, read(shard.path)), shard.count, advance, shard.path
                )

            thread_map(write, shards)
        write_metadata(source, work)
        work.rename(target)
        # last, so that an unfinished copy always names its origin
        (target / ORIGIN).unlink()


def write_shard(
    path: Path,
    records: Callable[[], Iterator[bytes]],
    expected: int,
    advance: Callable[[int], None],
    source: Path,
) -> None:
    """Write a shard of `expected` records, unless it is there; read it back before it is named.

    Raises InputError for another number of records, naming the source, and where the disk holds
    something else than was written.
    """
    if path.exists():
        advance(expected)
        return
    partial, written, count = path.with_name(f"{path.name}.partial"), hashlib.sha256(), 0

    def counted() -> Iterator[bytes]:
        nonlocal count
        for record in records():
            written.update(_framed(record))
            count += 1
            advance(1)
            yield record

    write_records(partial, counted())
    if count != expected:
        raise InputError(
            f"shard {source.name} in {source.parent} holds {count} records, expected {expected}"
        )
    found = hashlib.sha256()
    for record in read_records(partial):
        found.update(_framed(record))
    if found.digest() != written.digest():
        raise InputError(
            f"{partial} does not hold what was written to it: the disk or file system is at fault"
        )
    _fsync(partial)
    partial.rename(path)


def _framed(record: bytes) -> bytes:
    """A record preceded by its length, so that the hash depends on record boundaries."""
    return len(record).to_bytes(8, "little") + record


def _fsync(path: Path) -> None:
    """Flush a file to disk before it is renamed, so that no power failure keeps the name alone."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _new_name(path: Path) -> str:
    return path.name.replace(".tfrecord-", ".array_record-")


def _sizes(source: Path) -> dict[str, int]:
    """Names and sizes of the source's files; raises InputError where a shard is missing."""
    for shard in (shard for shards in list_splits(source).values() for shard in shards):
        if not shard.path.is_file():
            raise InputError(f"shard {shard.path.name} is missing in {source}")
    return {path.name: path.stat().st_size for path in sorted(source.iterdir()) if path.is_file()}


@contextlib.contextmanager
def claim_folder(work: Path, origin: Mapping[str, Any]) -> Iterator[None]:
    """Lock a folder in which data are written, and check that it was begun from this origin.

    Raises InputError where it was begun from another, and where another process is writing.
    """
    text = json.dumps(origin, sort_keys=True)
    with (work / ORIGIN).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"another process is writing {work}; wait for it, or end it"
            ) from error
        file.seek(0)
        begun = file.read()
        if begun and begun != text:
            raise InputError(
                f"{work} was begun from other data or for another size; to begin anew: rm -r {work}"
            )
        if not begun:
            file.write(text)
            file.flush()
        yield


def write_metadata(source: Path, work: Path) -> None:
    """Copy the metadata of `source`, for the ArrayRecord shards in `work`."""
    for path in source.iterdir():
        if (path.suffix in (".json", ".txt") or path.name == "LICENSE") and path.name not in (
            INFO,
            FINGERPRINT_FILE,
        ):
            shutil.copy(path, work)
    info = read_info(source)
    info["fileFormat"] = "array_record"
    for split in info["splits"]:
        names = [_new_name(shard.path) for shard in list_splits(source)[split["name"]]]
        split["numBytes"] = str(sum((work / name).stat().st_size for name in names))
    (work / INFO).write_text(json.dumps(info, indent=2))
