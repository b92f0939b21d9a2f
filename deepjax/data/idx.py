"""Read idx files, the format of the archives of MNIST and Fashion-MNIST."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from deepjax.errors import InputError, describe_error

_SPLITS = {"train": "train", "test": "t10k"}  # split -> first part of the archives' names


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an idx file packed with gzip.

    Two zero bytes, the type (8: unsigned byte), the number of axes, each size as a big-endian
    32-bit integer, then the values. Raises InputError where the file is missing or differs.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {describe_error(error)}") from error
    if data[:3] == b"\0\0\x08" and len(data) > 3:
        start = 4 + 4 * data[3]
        sizes = [int.from_bytes(data[at : at + 4]) for at in range(4, start, 4)]
        if len(data) == start + math.prod(sizes):
            return np.frombuffer(data, np.uint8, offset=start).reshape(sizes)
    raise InputError(f"{path} is no idx file of unsigned bytes")


def read_idx_split(archives: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, height, width) and labels (count,) of "train" or "test", as archived.

    `archives` holds `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz` and the two of
    `t10k`. Raises InputError where one is missing, corrupt, or of another number of images.
    """
    first = _SPLITS[split]
    images = read_idx(archives / f"{first}-images-idx3-ubyte.gz")
    labels = read_idx(archives / f"{first}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(
            f"archives in {archives} do not fit: {first} images {images.shape}, labels "
            f"{labels.shape}"
        )
    return images, labels
