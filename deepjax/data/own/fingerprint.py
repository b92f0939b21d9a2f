"""The fingerprint of the user's own data, by which a resumed run knows that they are the same."""

import functools
import hashlib
from collections.abc import Mapping

import numpy as np

from deepjax.data.fingerprint import BLOCK_BYTES, MAX_HASHED_BYTES
from deepjax.data.own.examples import Examples
from deepjax.data.own.index import open_index
from deepjax.data.threads import thread_map

MOST_FILES = MAX_HASHED_BYTES // BLOCK_BYTES  # of larger data, whose first blocks are hashed


def current_fingerprint(path: str) -> str:
    """`fingerprint_of` the user's own data at a path, as they are now.

    Raises InputError as that and `open_index` do.
    """
    return fingerprint_of(open_index(path).splits)


def fingerprint_of(splits: Mapping[str, Examples]) -> str:
    """sha256 of all names, sizes and labels, and of contents.

    Data of up to 512 MiB are hashed completely; of larger data 64 KiB of 8,192 images, spread
    evenly over each split. Raises InputError for an image that cannot be read.
    """
    found = hashlib.sha256()
    for split, examples in splits.items():
        found.update(f"{split} {len(examples)}\n".encode())
        sizes = examples.sizes()
        for i, size in enumerate(sizes):
            name = examples.name(i).encode(errors="surrogateescape")
            found.update(b"%d %d %s\n" % (size, examples.labels[i], name))
        small = sum(sizes) <= MAX_HASHED_BYTES
        count = len(examples) if small else min(MOST_FILES, len(examples))
        rows = np.linspace(0, len(examples) - 1, count).round().astype(int).tolist()
        digest = functools.partial(_digest, examples, None if small else BLOCK_BYTES)
        for each in thread_map(digest, rows):
            found.update(each)
    return found.hexdigest()


def _digest(examples: Examples, most: int | None, index: int) -> bytes:
    return hashlib.sha256(examples.content(index)[:most]).digest()
