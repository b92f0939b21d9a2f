"""deepjax's loader and the decoders that it could have: blocks for input.py."""

import dataclasses
import functools
import importlib.metadata
import io
from typing import Any, cast

import numpy as np
from block_server import Block, input_arguments, serve
from PIL import Image

from deepjax.data import Crops, EncodedSplit, dataset_info, encoded_split, load_split, train_batches
from deepjax.data.image.crops import crop_numbers
from deepjax.data.image.decode import CropFn, decode_crop, decode_rgb


def main() -> None:
    """Serve the blocks."""
    folder, cores, size, batch_size = input_arguments()
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    whole = dataclasses.replace(dataset_info("imagenet2012"), train_size=len(files))
    split = dataclasses.replace(
        cast(EncodedSplit, load_split(whole, "train", str(folder))), threads=cores
    )
    loader = functools.partial(loaded, split, size, batch_size)
    blocks: dict[str, Block] = {
        "deepjax": loader,
        "deepjax, exact": functools.partial(loader, Crops(exact=True)),
    }
    before: dict[str, Block] = {}
    if cores == 1:
        blocks |= {
            "deepjax without decoding": functools.partial(undecoded, loader, size)
        } | decoders(files, size)
    else:
        name = f"deepjax, {cores} processes in place of threads"
        blocks[name], before[name] = processes(split, size, batch_size, cores)
    names = ("grain", "array-record", "opencv-python-headless", "pillow", "numpy")
    serve(blocks, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names), before)


# frozen
def loaded(split: EncodedSplit, size: int, batch_size: int, crops: Crops = Crops()) -> int:  # noqa: B008
    """Every batch of an epoch."""
    steps = len(split) // batch_size
    return sum(
        len(batch["image"])
        for batch in train_batches(split, batch_size, 0, steps, crops=crops, size_at=lambda _: size)
    )


def undecoded(loader: Block, size: int) -> int:
    """What remains when decoding takes no time: the Python part, which threads do in series."""
    blank, real = np.zeros((size, size, 3), np.uint8), encoded_split.decode_crop
    encoded_split.decode_crop = lambda *_: blank
    try:
        return loader()
    finally:
        encoded_split.decode_crop = real


def processes(split: EncodedSplit, size: int, batch_size: int, cores: int) -> tuple[Block, Block]:
    """The same batches by Grain's worker processes; and a block that drops their backlog."""
    import grain
    from absl import flags

    from deepjax.data.loader import TrainBatches

    flags.FLAGS.mark_as_parsed()  # Grain's workers ask for flags
    steps = len(split) // batch_size
    batches = TrainBatches(
        dataclasses.replace(split, threads=1),
        batch_size,
        0,
        steps,
        size_at=functools.partial(_same, size),
    )
    dataset = (
        grain.MapDataset.source(batches)
        .repeat()
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    )
    iterator = iter(
        dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=cores, per_worker_buffer_size=1)
        )
    )

    def take(count: int) -> int:
        return sum(len(next(iterator)["image"]) for _ in range(count))

    return functools.partial(take, steps), functools.partial(take, 4 * cores)


def _same(size: int, _: int) -> int:
    return size


def decoders(files: list[bytes], size: int) -> dict[str, Block]:
    """Each over all files, from memory."""
    numbers = crop_numbers(0, 0, len(files)).tolist()
    chosen = [functools.partial(Crops().box, of_one, size=size) for of_one in numbers]

    def cuts(exact: bool) -> int:
        return len(
            [
                decode_crop(file, choose, size, exact)
                for file, choose in zip(files, chosen, strict=True)
            ]
        )

    return {
        "Pillow, whole image": lambda: len([decode_rgb(file) for file in files]),
        "Pillow, draft": lambda: len(
            [_drafted(file, choose, size) for file, choose in zip(files, chosen, strict=True)]
        ),
        "Pillow, crop scaled (exact)": lambda: cuts(True),
        "OpenCV, whole image": lambda: len([_opencv(file) for file in files]),
        "OpenCV, crop scaled (fast)": lambda: cuts(False),
    } | _simplejpeg(files)


def _opencv(file: bytes) -> Any:
    import cv2

    return cv2.imdecode(
        np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    )


def _drafted(file: bytes, choose: CropFn, size: int) -> np.ndarray:
    """Pillow's own scaling in the DCT, never below the crop's size; its filter from there."""
    with Image.open(io.BytesIO(file)) as image:
        box, width = choose(image.height, image.width), image.width
        shrunk = max(
            by for by in (1, 2, 4, 8) if by == 1 or min(box.height, box.width) >= by * size
        )
        image.draft("RGB", (image.width // shrunk, image.height // shrunk))
        scale = image.width / width
        edges = (
            scale * box.left,
            scale * box.top,
            scale * (box.left + box.width),
            scale * (box.top + box.height),
        )
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, edges))


def _simplejpeg(files: list[bytes]) -> dict[str, Block]:
    """Where it is installed: deepjax does not need it."""
    try:
        import simplejpeg  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    return {
        "simplejpeg, whole image": lambda: len([simplejpeg.decode_jpeg(file) for file in files])
    }


if __name__ == "__main__":
    main()
