"""The user's own images as ArrayRecord, with their splits: `deepjax data convert`."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.data.own.arrays import Arrays
from deepjax.data.own.converted import FORM, LABEL_NAMES, rows_file, write_rows
from deepjax.data.own.examples import Examples
from deepjax.data.own.fingerprint import fingerprint_of
from deepjax.data.own.index import open_index
from deepjax.data.prepare.rewrite import ORIGIN, claim_folder, write_shard
from deepjax.data.prepare.shrink import shrink
from deepjax.data.shards import INFO, Shard, list_splits, read_records
from deepjax.data.threads import progress, thread_map
from deepjax.errors import InputError, require
from deepjax.io import sync_folder, write_text
from deepjax.paths import user_path

SHARD_BYTES = 128 * 2**20  # of the images before they are shrunk
NAME = "images"


def convert_images(
    path: str, target: Path, side: int, test_fraction: float, split_seed: int
) -> dict[str, Examples]:
    """Write the splits of the user's own data to a new folder, which is a data set itself.

    side: of images whose shorter side is longer than this, see `shrink`; 0: all as they are. Until
    it is complete the folder is `unfinished.NAME` next to the target, where the same call resumes.
    Returns the splits. Raises InputError for a target that exists or lies within the data, arrays,
    images that cannot be read, and as `open_index` and `claim_folder` do.
    """
    require(side == 0 or 16 <= side <= 1024, "shorter_side", side, "16 to 1024 pixels")
    if target.exists():
        raise InputError(f"output_dir is {target}, which exists; choose another, or remove it")
    inside = user_path(path, "dataset").resolve() in target.resolve().parents
    require(not inside, "output_dir", str(target), "a folder outside of the data")
    index = open_index(path)
    if any(isinstance(examples, Arrays) for examples in index.splits.values()):
        raise InputError(f"dataset is {path!r}, arrays, which are in memory; nothing to convert")
    splits = index.split(test_fraction, split_seed)
    sizes = {split: examples.sizes() for split, examples in splits.items()}
    info = {
        "name": NAME,
        "version": "1.0.0",
        "fileFormat": "array_record",
        FORM: index.form,
        LABEL_NAMES: index.label_names,
        "shorter_side": side,
        "splits": [
            {"name": split, "shardLengths": _lengths(each)} for split, each in sizes.items()
        ],
    }
    chosen = (side, test_fraction, split_seed)
    origin = {"fingerprint": fingerprint_of(index.splits), "options": chosen, "info": info}
    work = target.with_name(f"unfinished.{target.name}")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise InputError(f"output_dir is {target}, which cannot be made: {reason}") from error
    with claim_folder(work, origin):
        write_text(work / INFO, json.dumps(info, indent=1) + "\n")
        with progress(f"writing {target.name}", sum(map(len, splits.values()))) as advance:
            for split, examples in splits.items():
                _write_split(work, split, examples, side, advance)
        sync_folder(work)
        work.rename(target)
        # last, so that an unfinished folder always names its origin
        (target / ORIGIN).unlink()
    return splits


def _lengths(sizes: list[int]) -> list[int]:
    """Images of each shard: equal numbers, of about `SHARD_BYTES`."""
    count = min(len(sizes), -(-max(1, sum(sizes)) // SHARD_BYTES))
    return [len(part) for part in np.array_split(np.arange(len(sizes)), count)]


def _write_split(work: Path, split: str, examples: Examples, side: int, advance: Any) -> None:
    shards = list_splits(work)[split]
    ends = np.cumsum([shard.count for shard in shards]).tolist()

    def write(shard: Shard, end: int) -> None:
        rows = range(end - shard.count, end)
        images = functools.partial(read_image, examples, side)
        write_shard(shard.path, lambda: map(images, rows), shard.count, advance, shard.path)

    thread_map(lambda of: write(*of), list(zip(shards, ends, strict=True)))
    write_rows(work / rows_file(split), examples, _record_sizes(shards))


def read_image(examples: Examples, side: int, row: int) -> bytes:
    """The bytes of an image as they are written."""
    return shrink(examples.encoded(row), side) if side else examples.encoded(row)


def _record_sizes(shards: list[Shard]) -> list[int]:
    return [len(record) for shard in shards for record in read_records(shard.path)]
