"""deepjax's loader on a folder of classes, as training opens it: blocks for own_images.py."""

import functools
import importlib.metadata
import itertools
import os

import numpy as np
from block_server import Block, input_arguments, serve

from deepjax.data import Crops, EncodedSplit, Split, dataset_info, load_split, train_batches


def main() -> None:
    """Serve the blocks."""
    folder, _, size, batch_size = input_arguments()
    split = load_split(dataset_info(str(folder)), "train")
    steps = int(os.environ["IMAGES_A_BLOCK"]) // batch_size
    loader = functools.partial(loaded, itertools.count(), split, size, batch_size, steps)
    blocks: dict[str, Block] = {
        "deepjax": loader,
        "deepjax, exact (Pillow)": functools.partial(loader, Crops(exact=True)),
    }
    names = ("grain", "opencv-python-headless", "pillow", "numpy")
    serve(blocks, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))


def loaded(
    seeds: "itertools.count[int]",
    split: Split | EncodedSplit,
    size: int,
    batch_size: int,
    steps: int,
    crops: Crops = Crops(),  # noqa: B008  # frozen
) -> int:
    """Batches of another seed each time; every second image is flipped, which training does later,
    on the device.
    """
    count = 0
    for batch in train_batches(
        split, batch_size, next(seeds), steps, crops=crops, size_at=lambda _: size
    ):
        images: np.ndarray = batch["image"]
        images[::2] = images[::2, :, ::-1]
        count += len(images)
    return count


if __name__ == "__main__":
    main()
