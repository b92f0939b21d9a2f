"""Regenerate the embedded subset of Fashion-MNIST from the original archives:

python -m deepjax.data.fashion_mnist_small.builder ARCHIVES DIRECTORY

ARCHIVES holds the four archives, `train-images-idx3-ubyte.gz` and so on. Needs the extra `prepare`
(tfds writes with TensorFlow).

The first 1,600 images of each class of the training archive are for training, the first 400 of each
class of the test archive for testing; both stay in the archive's order, with classes mixed. A pixel
is the mean of a block of 2x2 pixels, rounded half up: floor((a + b + c + d) / 4 + 1/2).
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from deepjax.data.idx import read_idx_split
from deepjax.data.prepare.tf_example import sorted_fields
from deepjax.data.shards import list_splits, read_records, write_records

TRAIN_PER_CLASS, TEST_PER_CLASS = 1600, 400
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# Images are small: compressed one by one they take 4.6 MB, as groups of unpacked PNGs 2.8 MB.
GROUPS = "group_size:64,zstd:19"


class FashionMnistSmall(tfds.core.GeneratorBasedBuilder):
    """A subset of Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT licence) at half size."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folder of the four archives of Fashion-MNIST."

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(14, 14, 1)),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            description="20,000 images of Fashion-MNIST: the first 1,600 training and 400 test "
            "images of each class, 14x14 pixels (means of 2x2 pixels).",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        archives = Path(dl_manager.manual_dir)
        return {
            "train": self._generate_examples(*read_idx_split(archives, "train"), TRAIN_PER_CLASS),
            "test": self._generate_examples(*read_idx_split(archives, "test"), TEST_PER_CLASS),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, per_class: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, index in enumerate(first_of_each_class(labels, per_class)):
            [image] = half_size(images[[index]])
            yield key, {"image": io.BytesIO(_unpacked_png(image)), "label": int(labels[index])}


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """The ascending indices of the first `count` examples of each class."""
    return np.sort(
        np.concatenate([np.flatnonzero(labels == each)[:count] for each in np.unique(labels)])
    )


def half_size(images: np.ndarray) -> np.ndarray:
    """Means of blocks of 2x2 pixels, rounded half up, of (count, height, width) uint8."""
    count, height, width = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2).astype(np.uint16)
    return ((blocks.sum((2, 4)) + 2) // 4).astype(np.uint8)


def _unpacked_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=0)
    return file.getvalue()


def write_data_set(archives: str, directory: str) -> Path:
    """Write the data set to a sub-folder of `directory`; returns its folder."""
    builder = FashionMnistSmall(data_dir=directory, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=archives)
    builder.download_and_prepare(download_config=config)
    folder = Path(builder.data_path)
    for shards in list_splits(folder).values():
        for shard in shards:
            records = [sorted_fields(record) for record in read_records(shard.path)]
            write_records(shard.path, iter(records), GROUPS)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0].rstrip(":"))
    parser.add_argument("archives", help="the folder of the four archives")
    parser.add_argument("directory", help="where the data set is written, in a folder of its own")
    arguments = parser.parse_args()
    write_data_set(arguments.archives, arguments.directory)
