"""Regenerate the embedded digits from scikit-learn: python -m deepjax.data.digits.builder DIRECTORY

Needs the extras `prepare` (tfds writes with TensorFlow) and `test` (scikit-learn). Pixels keep
their values 0 to 16. The first 1,437 images are for training, the last 360 for testing, in
scikit-learn's order, in which each writer's digits are adjacent: (nearly) all writers of the test
images are unseen.
"""

import argparse

import numpy as np
import tensorflow_datasets as tfds

TRAIN_SIZE = 1437


class Digits(tfds.core.GeneratorBasedBuilder):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak 1998, UCI; CC BY 4.0).

    scikit-learn's copy.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            description="1,797 images of handwritten digits, 8x8 pixels with values 0 to 16.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8, 1)
        return {
            "train": self._generate_examples(images[:TRAIN_SIZE], labels[:TRAIN_SIZE]),
            "test": self._generate_examples(images[TRAIN_SIZE:], labels[TRAIN_SIZE:]),
        }

    def _generate_examples(self, images, labels):
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": image, "label": int(label)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", help="where the data set is written, in a folder of its own")
    Digits(
        data_dir=parser.parse_args().directory, file_format="array_record"
    ).download_and_prepare()
