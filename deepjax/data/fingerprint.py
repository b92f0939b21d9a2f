"""The fingerprint of a prepared data set: sizes and hashes of its files, in `fingerprint.json`.

Data sets of up to 512 MiB are hashed completely, at each start. Of larger ones the same number of
bytes is hashed, in blocks spread evenly over every shard, the first and last included;
ArrayRecord's own hashes detect a flipped bit between them when the record is read.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepjax.data.shards import INFO, list_splits, read_info
from deepjax.errors import InputError

FINGERPRINT_FILE = "fingerprint.json"
MAX_HASHED_BYTES = 512 * 2**20
BLOCK_BYTES = 64 * 2**10
METADATA = (INFO, "features.json", "LICENSE")
REPREPARE_HINT = "delete that folder and prepare the data set again"
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class UndecodableImage:
    """An image that cannot be decoded: split, index of its record, file name and reason."""

    split: str
    record: int
    file: str
    why: str


def write_fingerprint(folder: Path, undecodable: Sequence[UndecodableImage] = ()) -> str:
    """Hash the files of a prepared data set and write its fingerprint; returns its sha256.

    Raises InputError where a shard is missing.
    """
    info, splits = read_info(folder), list_splits(folder)
    shards = [shard.path.name for several in splits.values() for shard in several]
    there = {path.name for path in folder.iterdir() if path.is_file()}
    if missing := [name for name in shards if name not in there]:
        raise InputError(f"shard {missing[0]} is missing in {folder}; {REPREPARE_HINT}")
    # no other files
    names = sorted(
        [*shards, *(name for name in there if name in METADATA or name.endswith(".labels.txt"))]
    )
    total = sum((folder / name).stat().st_size for name in names)
    byte_limit = (
        total if total <= MAX_HASHED_BYTES else max(BLOCK_BYTES, MAX_HASHED_BYTES // len(names))
    )
    content = {
        "name": info["name"],
        "version": info["version"],
        "records": {
            split: sum(shard.count for shard in shards) for split, shards in splits.items()
        },
        "damaged": [dataclasses.asdict(damage) for damage in undecodable],
        "hashed_bytes_of_a_file": byte_limit,
        "files": dict(zip(names, _digests(folder, names, byte_limit), strict=True)),
    }
    digest = _digest_of(content)
    partial = folder / f"{FINGERPRINT_FILE}.partial"  # so that none is half written
    partial.write_text(json.dumps({"sha256": digest} | content, indent=1) + "\n")
    partial.rename(folder / FINGERPRINT_FILE)
    return digest


def check_fingerprint(folder: Path) -> str:
    """Check a data set against its fingerprint; returns its sha256, "" where there is none.

    Raises InputError, naming the file, where one is missing, has another size or other bytes.
    """
    if not (folder / FINGERPRINT_FILE).exists():
        return ""
    digest, files, byte_limit = _read(folder)
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{name} is missing in {folder}; {REPREPARE_HINT}")
        if path.stat().st_size != size:
            raise InputError(
                f"{name} in {folder} has {path.stat().st_size:,} bytes, not {size:,}; "
                f"{REPREPARE_HINT}"
            )
    for (name, before), now in zip(
        files.items(), _digests(folder, list(files), byte_limit), strict=True
    ):
        if before != now:
            raise InputError(
                f"{name} in {folder} is not what was prepared: its sha256 is another; "
                f"{REPREPARE_HINT}"
            )
    return digest


def _read(folder: Path) -> tuple[str, dict[str, list[Any]], int]:
    """Digest, files and bytes hashed per file, of a valid fingerprint."""
    try:
        content = json.loads((folder / FINGERPRINT_FILE).read_text())
        digest, files, byte_limit = (
            content.pop("sha256"),
            content["files"],
            content["hashed_bytes_of_a_file"],
        )
        valid = (
            digest == _digest_of(content)
            and byte_limit > 0
            and all(Path(name).name == name for name in files)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise InputError(
            f"{folder / FINGERPRINT_FILE} is corrupt or was edited; delete it and prepare again, "
            "which writes it anew"
        )
    return digest, files, byte_limit


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path, names: Sequence[str], byte_limit: int) -> list[list[Any]]:
    """Size and sha256 of each file, of which about `byte_limit` bytes are read."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _digest(folder / name, byte_limit), names))


def _digest(path: Path, byte_limit: int) -> list[Any]:
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= byte_limit:
            for block in iter(lambda: file.read(2**20), b""):
                found.update(block)
        else:
            blocks = max(2, byte_limit // BLOCK_BYTES)
            for i in range(blocks):
                file.seek(i * (size - BLOCK_BYTES) // (blocks - 1))
                found.update(file.read(BLOCK_BYTES))
    return [size, found.hexdigest()]
