"""Prepared data sets whose --data-dir is a URL: the same records, from a copy on this machine."""

import collections
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from deepjax.data import Dataset, dataset_info
from deepjax.data.fingerprint import write_fingerprint
from deepjax.data.label_names import label_names
from deepjax.data.prepare.prepare import prepare_dataset
from deepjax.data.prepared import is_prepared
from deepjax.data.splits import load_split
from deepjax.errors import InputError
from deepjax.storage.bucket import Bucket
from deepjax.storage.local import copy_folder
from tests.data.made import png, write_examples

SHAPE, NAMES = (4, 4, 1), ["cat", "dog"]
DATASET = Dataset("pets", SHAPE, 2, 6, 3, (128.0,), (74.0,), flip=False, crop=0, source="tests")
RECORDS = "pets-train.array_record-00000-of-00001"


def write(folder, seed, name="pets"):
    """A data set of random pixels in a folder; returns the folder of its version."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, *SHAPE), np.uint8)
    examples = [{"image": png(each), "label": i % 2} for i, each in enumerate(pixels)]
    features = {
        "image": tfds.features.Image(shape=SHAPE),
        "label": tfds.features.ClassLabel(names=NAMES),
    }
    version = write_examples(folder, name, features, {"train": examples[:6], "test": examples[6:]})
    write_fingerprint(version)
    return version


def upload(folder, url):
    bucket = Bucket(url)
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload(path, path.relative_to(folder).as_posix())


def downloads(store):
    """How often each file of records was read."""
    content = "alt=media" if store.scheme == "gs" else ""  # else of its size and time
    read = [path for method, path in store.requests if method == "GET" and content in path]
    names = [name for name in ("train", "test") for path in read if f"-{name}.array_rec" in path]
    return collections.Counter(names)


def images(data_dir):
    return load_split(DATASET, "train", str(data_dir)).images


@pytest.fixture
def url(store, tmp_path, request):
    """Of a bucket with the data set, and with one whose name begins alike."""
    write(tmp_path / "data", 0)
    write(tmp_path / "data", 1, "pets2")
    found = store.url(f"data/{request.node.name}".replace("[", "-").strip("]"))
    upload(tmp_path / "data", found)
    return found


def test_the_records_are_those_of_the_folder_and_are_copied_once(store, url, tmp_path):
    local = load_split(DATASET, "train", str(tmp_path / "data"))
    split = load_split(DATASET, "train", url)
    np.testing.assert_array_equal(split.images, local.images)
    np.testing.assert_array_equal(split.labels, local.labels)
    assert len(load_split(DATASET, "test", url)) == 3
    assert downloads(store) == {"train": 1, "test": 1}
    assert sorted(path.name for path in copy_folder(url).iterdir()) == ["pets"]


def test_what_describes_the_data_is_read_without_records(store, url):
    assert is_prepared(DATASET, url)
    assert label_names(DATASET, url) == NAMES
    assert downloads(store) == {}


def test_another_preparation_in_the_bucket_replaces_the_copy(url, tmp_path):
    before = images(url)
    shutil.rmtree(tmp_path / "data" / "pets")
    write(tmp_path / "data", 2)
    upload(tmp_path / "data", url)
    assert (images(url) != before).any()
    np.testing.assert_array_equal(images(url), images(tmp_path / "data"))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_copy_that_the_disk_damaged_is_replaced(url, tmp_path):
    expected = images(tmp_path / "data")
    copy = copy_folder(url) / "pets" / "1.0.0"
    shutil.copytree(tmp_path / "data" / "pets" / "1.0.0", copy)
    flip_a_bit(copy / RECORDS)
    np.testing.assert_array_equal(images(url), expected)


def test_damage_in_the_bucket_is_refused(url, tmp_path):
    folder = tmp_path / "data" / "pets" / "1.0.0"
    flip_a_bit(folder / RECORDS)
    upload(tmp_path / "data", url)
    with pytest.raises(InputError, match="is not what was prepared") as caught:
        images(url)
    assert f"{RECORDS} in {url}/pets/1.0.0" in str(caught.value)
    assert "copy it there" in str(caught.value)


@pytest.mark.parametrize("fault", ["503", "429", "drop", "truncate", "slow"])
def test_a_server_that_fails_at_times_costs_only_time(store, url, tmp_path, fault):
    count = 0

    def every_third(method, path):
        nonlocal count
        count += 1
        return fault if count % 3 == 0 else ""

    store.fault = every_third
    np.testing.assert_array_equal(images(url), images(tmp_path / "data"))


def test_what_is_not_there_is_named_with_what_to_do(url):
    other = dataset_info("fashion_mnist")
    assert not is_prepared(other, url)
    with pytest.raises(InputError, match=f"not prepared in {url}; .* data prepare fashion_mnist"):
        load_split(other, "train", url)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda url: prepare_dataset("cifar10", url), "prepare data there, and copy that folder"),
        (lambda url: dataset_info(url), "copy your images there, or mount the bucket"),
    ],
)
def test_what_works_in_folders_alone_says_so(use, message):
    with pytest.raises(InputError, match=message):
        use("gs://bucket/data")


def test_a_disk_without_space_is_named_before_anything_is_copied(store, url, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"needs 0.0 GB below .*XDG_CACHE_HOME"):
        images(url)
    assert downloads(store) == {}
