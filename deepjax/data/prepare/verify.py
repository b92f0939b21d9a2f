"""Undecodable images, found by reading every record once."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from deepjax.data.fingerprint import UndecodableImage
from deepjax.data.image.decode import open_image
from deepjax.data.prepare.tf_example import file_name_of, image_of, parse_example
from deepjax.data.shards import Shard, list_splits, read_records
from deepjax.data.threads import progress, thread_map
from deepjax.errors import InputError


def find_undecodable(folder: Path) -> list[UndecodableImage]:
    """Decode every image of a prepared data set at an eighth of its size, which reads every byte.

    Raises InputError, naming the shard, where one is missing, corrupt or has another number of
    records than it should.
    """
    splits = list_splits(folder)
    total = sum(shard.count for shards in splits.values() for shard in shards)
    with progress(f"reading back {folder.parent.name}", total) as advance:

        def check(place: tuple[str, Shard, int]) -> list[UndecodableImage]:
            return list(_damaged(*place, advance))

        return list(itertools.chain(*thread_map(check, _places(splits))))


def _places(splits: dict[str, list[Shard]]) -> Iterator[tuple[str, Shard, int]]:
    """Each shard with its split and the index in the split of its first record."""
    for split, shards in splits.items():
        starts = itertools.accumulate((shard.count for shard in shards), initial=0)
        yield from ((split, shard, start) for shard, start in zip(shards, starts, strict=False))


def _damaged(split: str, shard: Shard, start: int, advance) -> Iterator[UndecodableImage]:
    count = 0
    for count, record in enumerate(read_records(shard.path), 1):
        advance(1)
        example = parse_example(record)
        if why := decode_error(image_of(example)):
            yield UndecodableImage(split, start + count - 1, file_name_of(example), why)
    if count != shard.count:
        raise InputError(
            f"shard {shard.path.name} holds {count} records, expected {shard.count}; prepare the "
            "data set again"
        )


def decode_error(image: bytes) -> str:
    """Why the image cannot be decoded, "" where `open_image` and Pillow's decoder accept it.

    Bytes that changed within the compressed pixels of a JPEG decode to other pixels; no decoder
    detects that.
    """
    try:
        with open_image(image) as picture:
            # of a JPEG, an eighth each way: what is in the file is read all the same
            picture.draft("L", (1, 1))
            picture.load()
        return ""
    except (MemoryError, ImportError):
        raise
    # Pillow raises OSError, SyntaxError, ValueError, struct.error and others: all mean damage
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0].partition("<_io")[0].strip()[:200]
