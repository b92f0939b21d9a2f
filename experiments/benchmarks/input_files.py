"""JPEG files like ImageNet's, from photographs of scikit-learn and matplotlib; and ArrayRecord."""

import io
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHAPES = ((350, 400), (400, 350))
BYTES = 110_000  # of a file; ImageNet's mean
PHOTOGRAPHS = (
    ("sklearn.datasets.images", "china.jpg"),
    ("sklearn.datasets.images", "flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
FOLDER_SHAPES, CLASSES, QUALITY = ((375, 500), (500, 375)), 10, 90  # of a folder of classes
GRAIN = 5.0  # deviation of the noise, in grey levels, that enlarging took from them
QUALITIES = range(75, 100)


def write_files(folder: Path, count: int) -> list[Path]:
    """Random enlarged crops of the photographs with a photograph's grain, each of about BYTES."""
    rng = np.random.default_rng(0)
    wholes = [_photograph(*place) for place in PHOTOGRAPHS]
    paths = [folder / f"{i:05d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(
            _encoded(_piece(wholes[i % len(wholes)], SHAPES[i // len(wholes) % len(SHAPES)], rng))
        )
    return paths


def write_class_folders(root: Path, count: int) -> float:
    """Such images in a folder for each class, at one quality; returns the mean bytes of a file."""
    rng = np.random.default_rng(0)
    wholes = [_photograph(*place) for place in PHOTOGRAPHS]
    written = 0
    for i in range(count):
        whole, shape = wholes[i % len(wholes)], FOLDER_SHAPES[i // len(wholes) % 2]
        path = root / f"class{i % CLASSES}" / f"{i:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        written += path.write_bytes(_jpeg(_piece(whole, shape, rng), QUALITY))
    return written / count


def write_records(data_dir: Path, paths: list[Path]) -> None:
    """The same files in ArrayRecord, as tfds's builder `imagenet2012` stores its training split."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer
    from tensorflow_datasets.core.utils.shard_utils import ShardConfig
    from tensorflow_datasets.core.writer import ExampleWriter, Writer

    builder = tfds.builder("imagenet2012", data_dir=data_dir, file_format="array_record")
    folder = Path(builder.data_path)
    folder.mkdir(parents=True)
    features: Any = builder.info.features
    kind: Any = builder.info.file_format
    template = builder._get_filename_template(split_name="train")
    serializer, kind = ExampleSerializer(features.get_serialized_info()), ExampleWriter(kind)
    writer = Writer(serializer, template, "train", False, kind, ShardConfig(num_shards=1))
    for i, path in enumerate(paths):
        example = {
            "file_name": path.name,
            "image": io.BytesIO(path.read_bytes()),
            "label": i % 1000,
        }
        writer.write(path.name.encode(), features.encode_example(example))
    lengths, size = writer.finalize()
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=lengths, num_bytes=size, filename_template=template
    )
    builder.info.set_splits(tfds.core.SplitDict([split]))
    builder.info.write_to_directory(folder)


def _photograph(package: str, name: str) -> Image.Image:
    with Image.open(io.BytesIO(resources.files(package).joinpath(name).read_bytes())) as image:
        return image.convert("RGB")


def _piece(whole: Image.Image, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = shape
    scale = min(whole.height / height, whole.width / width) * rng.uniform(0.6, 1)
    top, left = (
        rng.uniform(0, whole.height - scale * height),
        rng.uniform(0, whole.width - scale * width),
    )
    box = (left, top, left + scale * width, top + scale * height)
    pixels = np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC, box), np.float32)
    return np.clip(pixels + rng.normal(0, GRAIN, (height, width, 1)), 0, 255).astype(np.uint8)


def _encoded(pixels: np.ndarray) -> bytes:
    """At the quality that gives the size nearest to BYTES."""
    low, high = QUALITIES[0], QUALITIES[-1]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(_jpeg(pixels, middle)) < BYTES else (low, middle)
    return min(
        (_jpeg(pixels, quality) for quality in (low, high)),
        key=lambda encoded: abs(len(encoded) - BYTES),
    )


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
