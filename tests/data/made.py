"""Small data sets of given arrays, prepared as by tfds, without TensorFlow."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from deepjax.data import Dataset
from deepjax.data.shards import write_records

Examples = Sequence[Mapping[str, Any]]


def write_examples(
    data_dir: Path, name: str, features: Mapping[str, Any], splits: Mapping[str, Examples]
) -> Path:
    """A builder of that name in `data_dir`, one ArrayRecord shard per split.

    Returns the version's folder.
    """
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name, tfds.core.Version("1.0.0"), str(folder), "tests"
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(dict(features)), description="made up"
    )
    info.set_file_format("array_record")
    serializer, made = ExampleSerializer(info.features.get_serialized_info()), []
    for split, examples in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        records = [
            serializer.serialize_example(info.features.encode_example(dict(example)))
            for example in examples
        ]
        write_records(folder / f"{name}-{split}.array_record-00000-of-00001", iter(records))
        made.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(records)], num_bytes=1, filename_template=template
            )
        )
    info.set_splits(tfds.core.SplitDict(made))
    info.write_to_directory(folder)
    return folder


def png(pixels: np.ndarray) -> io.BytesIO:
    """Pixels (height, width, channels) of 8 or 16 bits as a file, which tfds stores as it is."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    file.seek(0)
    return file


def write_made(
    data_dir: Path,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    name: str,
) -> Dataset:
    """A data set of these images (images, height, width, channels) uint8 and labels, as it
    describes itself.
    """
    shape = train[0].shape[1:]
    classes = int(max(train[1].max(), test[1].max())) + 1
    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=classes),
    }
    splits = {
        split: [
            {"image": png(image), "label": int(label)}
            for image, label in zip(images, labels, strict=True)
        ]
        for split, (images, labels) in (("train", train), ("test", test))
    }
    write_examples(data_dir, name, features, splits)
    mean, std = (tuple(measure(train[0], axis=(0, 1, 2)).tolist()) for measure in (np.mean, np.std))
    return Dataset(
        name, shape, classes, len(train[1]), len(test[1]), mean, std, False, 0, "made up"
    )
