"""The small data sets of the catalog, prepared without TensorFlow."""

import dataclasses
import errno
import http.server
import sys
import threading
from functools import partial

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.hashing import Hasher

from deepjax.data import catalog, dataset_info, load_split, register
from deepjax.data.label_names import label_names
from deepjax.data.prepare import small
from deepjax.data.prepare.prepare import prepare_dataset
from deepjax.data.prepare.rewrite import claim_folder
from deepjax.data.prepare.small import READERS, download
from deepjax.errors import InputError
from deepjax.training.run_directory.data_identity import pin_description, read_description
from tests.data.prepare.small_archives import (
    COUNTS,
    images_and_labels,
    write_small_archives,
)

NAMES = tuple(READERS)


@pytest.fixture(autouse=True)
def _forgets(monkeypatch):
    monkeypatch.setattr(catalog, "CATALOG", dict(catalog.CATALOG))


@pytest.fixture
def unchecked(monkeypatch):
    """Archives of any size and sha256."""
    monkeypatch.setattr(small, "check_archive", lambda path, known: None)


def of_few_images(name: str):
    """The data set with the numbers of the made-up archives."""
    train, test = COUNTS["train"], COUNTS["test"]
    sizes = {"name": f"few_{name}", "train_size": train, "test_size": test}
    return register(dataclasses.replace(dataset_info(name), **sizes))


@pytest.mark.parametrize("name", NAMES)
def test_every_image_has_its_label_and_the_order_is_that_of_tfds(name, unchecked, tmp_path):
    archives = write_small_archives(tmp_path / "archives", name)
    dataset = of_few_images(name)
    folder = prepare_dataset(dataset.name, str(tmp_path / "data"), str(archives))
    assert (folder / "fingerprint.json").is_file() and "tensorflow" not in sys.modules
    for split, (images, labels, _) in images_and_labels(name).items():
        found = load_split(dataset, split, str(tmp_path / "data"))
        images = images[..., None] if images.ndim == 3 else images
        order = sorted(range(len(images)), key=Hasher(split).hash_key)
        np.testing.assert_array_equal(found.images, images[order])
        np.testing.assert_array_equal(found.labels, labels[order])


def test_names_of_classes_are_in_the_prepared_data(unchecked, tmp_path):
    archives = write_small_archives(tmp_path / "archives", "cifar10")
    dataset = of_few_images("cifar10")
    prepare_dataset(dataset.name, str(tmp_path / "data"), str(archives))
    assert label_names(dataset, str(tmp_path / "data")) == [f"class{i}" for i in range(10)]
    assert label_names(dataset, str(tmp_path / "nowhere")) == [str(i) for i in range(10)]
    pin_description(tmp_path / "run", dataset, str(tmp_path / "data"))
    assert read_description(tmp_path / "run")["label_names"] == [f"class{i}" for i in range(10)]
    pin_description(tmp_path / "run", dataset, str(tmp_path / "nowhere"))  # the names alone differ


def test_the_further_images_of_svhn_are_written_where_they_are_asked_for(unchecked, tmp_path):
    archives = write_small_archives(tmp_path / "archives", "svhn_cropped")
    (archives / "extra_32x32.mat").write_bytes((archives / "train_32x32.mat").read_bytes())
    size = 2 * COUNTS["train"]
    dataset = dataclasses.replace(
        of_few_images("svhn_cropped"), name="more", train_split="train+extra", train_size=size
    )
    prepare_dataset(register(dataset).name, str(tmp_path / "data"), str(archives))
    assert len(load_split(dataset, "train", str(tmp_path / "data"))) == size


def test_a_folder_that_cannot_be_written_is_one_line(unchecked, tmp_path):
    archives = write_small_archives(tmp_path / "archives", "cifar10")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"cannot be prepared in .*; free space, or choose another"
    ):
        prepare_dataset("cifar10", str(tmp_path / "file" / "data"), str(archives))


def test_a_full_disk_is_one_line_and_leaves_no_data_set(unchecked, tmp_path, monkeypatch):
    archives = write_small_archives(tmp_path / "archives", "cifar10")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(small, "write_records_of", full)
    with pytest.raises(InputError, match="No space left on device"):
        prepare_dataset("cifar10", str(tmp_path / "data"), str(archives))
    assert not list((tmp_path / "data").glob("cifar10/[0-9]*"))


def test_what_another_process_writes_is_left_alone(unchecked, tmp_path):
    archives = write_small_archives(tmp_path / "archives", "cifar10")
    dataset = of_few_images("cifar10")
    work = tmp_path / "data" / "cifar10" / "unfinished.3.0.2"
    work.mkdir(parents=True)
    (work / "theirs").write_text("")
    with (
        claim_folder(work, {"builder": "cifar10"}),
        pytest.raises(InputError, match="another process is writing"),
    ):
        prepare_dataset(dataset.name, str(tmp_path / "data"), str(archives))
    assert (work / "theirs").exists()
    folder = prepare_dataset(dataset.name, str(tmp_path / "data"), str(archives))
    assert folder.name == "3.0.2" and not (folder / "theirs").exists()
    assert not (folder / "origin.json").exists()


def test_cifar_100_keeps_its_coarse_labels_ids_and_names(unchecked, tmp_path):
    archives = write_small_archives(tmp_path / "archives", "cifar100")
    of_few_images("cifar100")
    folder = prepare_dataset("few_cifar100", str(tmp_path / "data"), str(archives))
    builder = tfds.builder_from_directory(folder)
    assert builder.info.features["coarse_label"].names == [f"coarse{i}" for i in range(20)]
    assert builder.info.features["label"].names[:2] == ["fine0", "fine1"]
    images, labels, coarse = images_and_labels("cifar100")["test"]
    records = list(builder.as_data_source("test"))
    assert sorted(each["id"].decode() for each in records) == [f"test_{i:05d}" for i in range(8)]
    for each in records:
        i = int(each["id"].decode().removeprefix("test_"))
        assert (each["label"], each["coarse_label"]) == (labels[i], coarse[i])
        np.testing.assert_array_equal(each["image"], images[i])


@pytest.mark.parametrize("name", NAMES)
def test_archives_that_are_not_those_of_tfds_are_refused(name, tmp_path):
    archives = write_small_archives(tmp_path / "archives", name)
    with pytest.raises(InputError, match=r"has [\d,]+ bytes, not [\d,]+: it is not complete"):
        prepare_dataset(name, str(tmp_path / "data"), str(archives))
    next(archives.iterdir()).rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"has no .*; get it from http|is not complete"):
        prepare_dataset(name, str(tmp_path / "data"), str(archives))
    assert not (tmp_path / "data" / name).exists()


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("cifar10", "cifar-10-binary.tar.gz", "has no readable cifar-10-batches-bin/batches.meta"),
        ("svhn_cropped", "train_32x32.mat", r"train_32x32\.mat cannot be read"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz", "cannot be read"),
    ],
)
def test_damaged_archives_are_named_and_leave_nothing(name, file, message, unchecked, tmp_path):
    archives = write_small_archives(tmp_path / "archives", name)
    path = archives / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(InputError, match=message) as error:
        prepare_dataset(name, str(tmp_path / "data"), str(archives))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob(f"{name}/[0-9]*"))


@pytest.fixture
def server(tmp_path):
    """A server on the loopback of the files in a folder, and that folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None  # pyright: ignore
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_download_is_complete_or_leaves_nothing(server, tmp_path, capfd):
    folder, url = server
    content = np.random.default_rng(0).bytes(3_000_000)
    (folder / "file.gz").write_bytes(content)
    download(f"{url}/file.gz", tmp_path / "there" / "file.gz", len(content))
    assert (tmp_path / "there" / "file.gz").read_bytes() == content
    with pytest.raises(InputError, match=r"it ended after 3,000,000 of 4,000,000 bytes"):
        download(f"{url}/file.gz", tmp_path / "bad" / "file.gz", 4_000_000)
    for bad in (f"{url}/other.gz", "http://127.0.0.1:9/file.gz"):
        with pytest.raises(InputError, match=r"cannot be downloaded .*give its folder as --manual"):
            download(bad, tmp_path / "bad" / "file.gz", 10)
    assert list((tmp_path / "bad").iterdir()) == []
