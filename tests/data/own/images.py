"""Writes small photographs in folders of classes."""

from collections.abc import Mapping
from pathlib import Path

from tests.data.photographs import crops, jpeg


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """0.jpg, 1.jpg, ...: parts of photographs, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(crops(count, seed, shortest=16, longest=40)):
        (folder / f"{i}.jpg").write_bytes(jpeg(pixels))
    return folder


def write_classes(root: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """A folder of so many images for each class."""
    for i, (name, count) in enumerate(counts.items()):
        write_images(root / name, count, seed=100 * seed + i)
    return root
