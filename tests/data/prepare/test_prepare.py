"""Preparing: every way in which it cannot work is one line that says what to do."""

import errno
import importlib.util

import pytest

from deepjax.data import dataset_info
from deepjax.data.embedded import EMBEDDED
from deepjax.data.prepare.build import repair_hint
from deepjax.data.prepare.prepare import prepare_dataset
from deepjax.data.prepare.tfrecord import find_tfrecord
from deepjax.errors import InputError
from tests.data.archives import DAMAGED, small_imagenet


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_is_in_the_package_needs_no_preparing(name):
    with pytest.raises(InputError, match=f"'{name}' is part of the package"):
        prepare_dataset(name)


def test_an_unknown_name_gives_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'cifar100'"):
        prepare_dataset("cifar-100")


def test_a_missing_folder_of_archives_is_named(tmp_path):
    with pytest.raises(InputError, match=r"manual_dir is .*absent"):
        prepare_dataset("fashion_mnist", manual_dir=str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("error", "manual_dir", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            None,
            "free space, or give another --data-dir",
        ),
        (ValueError("checksum"), "in", "fetch the archives in in again"),
        (ConnectionError(), None, "pass --manual-dir"),
    ],
)
def test_therepair_hint_fits_what_failed(error, manual_dir, words):
    assert words in repair_hint(error, manual_dir)


def test_damaged_metadata_of_tfrecords_are_named(tmp_path):
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be opened as 'imagenet2012'"):
        find_tfrecord(dataset_info("imagenet2012"), str(tmp_path))


def test_undecodable_images_are_listed_with_the_options_that_skip_them(tmp_path, capsys):
    """Both splits count: what is corrupt of either is found in a run."""
    dataset = small_imagenet(tmp_path, train=20, validation=5, damaged=True)
    prepare_dataset(dataset.name, str(tmp_path))
    assert f"--on-decode-error skip --max-decode-errors {DAMAGED}\n" in capsys.readouterr().out


def test_without_tensorflow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'deepjax\[prepare\]'"):
        prepare_dataset("imagenette/160px-v2", str(tmp_path))
