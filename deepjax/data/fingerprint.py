"""What was prepared, in `fingerprint.json` beside the data, and whether it is still that: sizes of all files and hashes of them.

Data sets of up to 512 MiB are hashed whole, at each start. Of larger ones as many bytes are, in blocks spread evenly over every
shard with its first and last; a flipped bit between them is found by ArrayRecord's own hashes, when its record is read.
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
    """An image that cannot be decoded: where it stands, what it was called and why it cannot."""

    split: str
    record: int
    file: str
    why: str


def write_fingerprint(folder: Path, undecodable: Sequence[UndecodableImage] = ()) -> str:
    """Hash the files of a prepared data set and write its fingerprint; returns the sha256 that names it."""
    info, splits = read_info(folder), list_splits(folder)
    shards = [shard.path.name for several in splits.values() for shard in several]
    there = {path.name for path in folder.iterdir() if path.is_file()}
    if missing := [name for name in shards if name not in there]:
        raise InputError(f"shard {missing[0]} is missing in {folder}; {REPREPARE_HINT}")
    names = sorted(
        [*shards, *(name for name in there if name in METADATA or name.endswith(".labels.txt"))]
    )  # and no strays
    total = sum((folder / name).stat().st_size for name in names)
    share = total if total <= MAX_HASHED_BYTES else max(BLOCK_BYTES, MAX_HASHED_BYTES // len(names))
    content = {
        "name": info["name"],
        "version": info["version"],
        "records": {
            split: sum(shard.count for shard in shards) for split, shards in splits.items()
        },
        "damaged": [dataclasses.asdict(damage) for damage in undecodable],
        "hashed_bytes_of_a_file": share,
        "files": dict(zip(names, _digests(folder, names, share), strict=True)),
    }
    digest = _digest_of(content)
    partial = folder / f"{FINGERPRINT_FILE}.partial"  # so that none is half written
    partial.write_text(json.dumps({"sha256": digest} | content, indent=1) + "\n")
    partial.rename(folder / FINGERPRINT_FILE)
    return digest


def check_fingerprint(folder: Path) -> str:
    """Hold a prepared data set against its fingerprint; returns the sha256 that names it, "" where there is none.

    Raises InputError, naming the file, where one is missing, has another size or other bytes.
    """
    if not (folder / FINGERPRINT_FILE).exists():
        return ""
    digest, files, share = _read(folder)
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{name} is missing in {folder}; {REPREPARE_HINT}")
        if path.stat().st_size != size:
            raise InputError(
                f"{name} in {folder} has {path.stat().st_size:,} bytes, not {size:,}; {REPREPARE_HINT}"
            )
    for (name, before), now in zip(
        files.items(), _digests(folder, list(files), share), strict=True
    ):
        if before != now:
            raise InputError(
                f"{name} in {folder} is not what was prepared: its sha256 is another; {REPREPARE_HINT}"
            )
    return digest


def _read(folder: Path) -> tuple[str, dict[str, list[Any]], int]:
    """Digest, files and bytes of each that are hashed, of a fingerprint that is whole."""
    try:
        content = json.loads((folder / FINGERPRINT_FILE).read_text())
        digest, files, share = (
            content.pop("sha256"),
            content["files"],
            content["hashed_bytes_of_a_file"],
        )
        whole = (
            digest == _digest_of(content)
            and share > 0
            and all(Path(name).name == name for name in files)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(
            f"{folder / FINGERPRINT_FILE} is damaged or was edited; delete it and prepare again, which writes it anew"
        )
    return digest, files, share


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path, names: Sequence[str], share: int) -> list[list[Any]]:
    """Size and sha256 of each file, of which about `share` bytes are read."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _digest(folder / name, share), names))


def _digest(path: Path, share: int) -> list[Any]:
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= share:
            for block in iter(lambda: file.read(2**20), b""):
                found.update(block)
        else:
            blocks = max(2, share // BLOCK_BYTES)
            for i in range(blocks):
                file.seek(i * (size - BLOCK_BYTES) // (blocks - 1))
                found.update(file.read(BLOCK_BYTES))
    return [size, found.hexdigest()]
