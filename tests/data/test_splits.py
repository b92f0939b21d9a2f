"""Reading prepared data: what is wrong is named, and nothing wrong is read."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepjax.data import dataset_info, list_datasets, load_split, splits
from deepjax.data.embedded import EMBEDDED
from deepjax.data.prepared import data_directory
from deepjax.errors import InputError

DIGITS = dataset_info("digits")
PREPARED = [
    name for name in list_datasets() if name in EMBEDDED or (data_directory() / name).exists()
]


@pytest.mark.parametrize("name", PREPARED)
def test_sizes_shapes_and_statistics_of_the_catalog(name):
    """Counts are those of tfds; mean and std are recomputed from the training images."""
    dataset = dataset_info(name)
    train, test = load_split(dataset, "train"), load_split(dataset, "test")
    assert (len(train), len(test)) == (dataset.train_size, dataset.test_size)
    assert train.images.shape[1:] == dataset.shape
    assert set(train.labels.tolist()) == set(range(dataset.num_classes))
    np.testing.assert_allclose(train.images.mean((0, 1, 2)), dataset.mean, rtol=2e-3)
    np.testing.assert_allclose(train.images.std((0, 1, 2)), dataset.std, rtol=2e-3)


def test_a_data_set_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"deepjax data prepare cifar10"):
        load_split(dataset_info("cifar10"), "train", str(tmp_path))


def test_unknown_names_give_the_nearest_one():
    with pytest.raises(
        InputError, match="dataset 'fashion-mnist' is unknown; did you mean 'fashion_mnist'"
    ):
        dataset_info("fashion-mnist")


@pytest.fixture
def copied_digits(tmp_path, monkeypatch) -> Path:
    copy = shutil.copytree(EMBEDDED["digits"], tmp_path / "digits" / "1.0.0")
    monkeypatch.setitem(EMBEDDED, "digits", copy)
    return next(copy.glob("digits-test.array_record*"))


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_flipped_bit_is_noticed_or_harmless(copied_digits, place):
    """ArrayRecord's chunks carry hashes.

    A flip in used bytes raises, one in padding changes nothing.
    """
    before = load_split(DIGITS, "test")
    data = bytearray(copied_digits.read_bytes())
    used = len(bytes(data).rstrip(b"\0"))
    data[int(place * used)] ^= 0x10
    copied_digits.write_bytes(data)
    try:
        after = load_split(DIGITS, "test")
    except InputError as error:
        assert "digits" in str(error) and "test" in str(error)
    else:
        np.testing.assert_array_equal(after.images, before.images)
        np.testing.assert_array_equal(after.labels, before.labels)


def test_a_truncated_file_is_an_error(copied_digits):
    os.truncate(copied_digits, 1000)
    with pytest.raises(InputError, match="digits"):
        load_split(DIGITS, "test")


def png(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_label_outside_the_classes_names_the_record(monkeypatch):
    """2**32 + 3 would be 3 in 32 bits."""
    labels = (3, 10, -1, 2**32 + 3)
    monkeypatch.setattr(
        splits,
        "open_records",
        lambda *_: ([{"image": png(8, 8), "label": np.int64(label)} for label in labels], ""),
    )
    with pytest.raises(
        InputError, match=r"record 1 has label 10; allowed: 0 to 9 \(3 such records\)"
    ):
        load_split(DIGITS, "train")


def test_an_image_of_another_shape_names_the_record(monkeypatch):
    monkeypatch.setattr(splits, "open_records", lambda *_: ([{"image": png(9, 8), "label": 0}], ""))
    with pytest.raises(
        InputError,
        match=r"split 'train', record 0: image has shape \(9, 8, 1\), expected \(8, 8, 1\)",
    ):
        load_split(DIGITS, "train")


def test_another_number_of_records_is_refused(copied_digits):
    metadata = copied_digits.with_name("dataset_info.json")
    metadata.write_text(metadata.read_text().replace('"360"', '"359"'))
    with pytest.raises(InputError, match=r"split 'test' holds 359 records, expected 360"):
        load_split(DIGITS, "test")
