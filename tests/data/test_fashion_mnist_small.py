"""The embedded subset of Fashion-MNIST: its statistics, and every pixel against the archives."""

import dataclasses
import gzip

import numpy as np
import pytest
import tensorflow_datasets as tfds

from deepjax.data import dataset_info, load_split
from deepjax.data.embedded import EMBEDDED
from deepjax.data.fashion_mnist_small import builder
from tests.data.fashion_mnist import ARCHIVES, needs_archives

DATASET = dataset_info("fashion_mnist_small")


@pytest.mark.parametrize(("split", "per_class"), [("train", 1600), ("test", 400)])
def test_each_class_has_the_same_number_of_images(split, per_class):
    data = load_split(DATASET, split)
    assert data.images.shape == (10 * per_class, 14, 14, 1)
    np.testing.assert_array_equal(np.bincount(data.labels), [per_class] * 10)


def test_mean_and_std_are_those_of_the_training_images():
    """Sums of integers, so that nothing is rounded before the last digits of the catalog."""
    pixels = load_split(DATASET, "train").images.astype(np.int64)
    mean = pixels.sum() / pixels.size
    std = (np.square(pixels).sum() / pixels.size - mean**2) ** 0.5
    assert DATASET.mean == (pytest.approx(mean, abs=5e-5),)
    assert DATASET.std == (pytest.approx(std, abs=5e-5),)


def test_it_is_smaller_than_three_megabytes_and_has_its_licence():
    folder = EMBEDDED["fashion_mnist_small"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    licence = (folder.parents[1] / "LICENSE").read_text()
    assert "MIT License" in licence and "2017 Zalando SE" in licence


def test_label_names_are_those_of_fashion_mnist(tmp_path):
    """tfds's, for the whole data set."""
    label = tfds.builder_from_directory(EMBEDDED["fashion_mnist_small"]).info.features["label"]
    whole = tfds.builder("fashion_mnist", data_dir=tmp_path).info.features["label"]
    assert label.names == whole.names


def test_a_part_of_it_is_read_without_the_rest(caplog):
    """And without a complaint of the reader about compressed groups of records."""
    part = dataclasses.replace(
        DATASET,
        name="part",
        train_split="train[:70]+train[-3:]",
        train_size=73,
        test_split="train[50%:60%]",
        test_size=1600,
    )
    full = load_split(DATASET, "train")
    for split, chosen in (
        ("train", np.r_[:70, 15_997:16_000]),
        ("test", np.r_[8000:9600]),
    ):
        found = load_split(part, split)
        np.testing.assert_array_equal(found.images, full.images[chosen])
        np.testing.assert_array_equal(found.labels, full.labels[chosen])
    assert not caplog.records


def test_means_are_rounded_half_up():
    """(0 + 0 + 1 + 1) / 4 is 0.5, which becomes 1; 254.5 becomes 255, 0.25 becomes 0."""
    blocks = np.array([[[0, 0, 255, 254, 0, 0], [1, 1, 255, 254, 0, 1]]], np.uint8)
    np.testing.assert_array_equal(builder.half_size(blocks), [[[1, 255, 0]]])


@needs_archives
@pytest.mark.parametrize(
    ("split", "name", "count"), [("train", "train", 1600), ("test", "t10k", 400)]
)
def test_every_pixel_and_label_is_that_of_the_archives(split, name, count):
    """Read by position: 16 bytes before the pixels of an archive, 8 before the labels."""
    labels = np.frombuffer(
        gzip.decompress((ARCHIVES / f"{name}-labels-idx1-ubyte.gz").read_bytes()),
        np.uint8,
        offset=8,
    )
    images = np.frombuffer(
        gzip.decompress((ARCHIVES / f"{name}-images-idx3-ubyte.gz").read_bytes()),
        np.uint8,
        offset=16,
    )
    seen, chosen = [0] * 10, []
    for index, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= count:
            chosen.append(index)
    pixels = images.reshape(-1, 28, 28)[chosen].astype(float)
    corners = (pixels[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    expected = np.floor(sum(corners) / 4 + 0.5)
    data = load_split(DATASET, split)
    np.testing.assert_array_equal(data.images[..., 0], expected)
    np.testing.assert_array_equal(data.labels, labels[chosen])
