"""Training on a folder of images: exact resume, and a folder that has changed in between."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from deepjax.data import dataset_info
from deepjax.data.catalog import named_split
from deepjax.errors import InputError
from deepjax.models import create_model
from deepjax.training import RunOptions, compile_training, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.config import train_config
from deepjax.training.run_directory.config_file import read_config
from deepjax.training.run_directory.data_identity import read_description
from deepjax.training.run_directory.run_dir import open_run
from tests.data.own.images import write_classes, write_images

THIN = functools.partial(create_model, "cifar_plain20", width=2, stages=(1, 1, 1))
EVERY_2 = RunOptions(save_every=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 training images and 6 for tests: 3 steps an epoch."""
    return write_classes(tmp_path_factory.mktemp("own") / "my images", {"a b": 20, "犬": 10})


@pytest.fixture(scope="module")
def config(folder):
    return train_config("own/thin", str(folder), batch_size=8, epochs=2, image_size=16)


@pytest.fixture(scope="module")
def programs(config):
    return compile_training(config, EVERY_2, make=THIN)


@pytest.fixture(scope="module")
def whole(config, programs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, train(config, out, EVERY_2, programs=programs)


def interrupted(config, programs, out):
    def interrupt(step: int, total: int, note: str) -> None:
        if step >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, out, EVERY_2, programs=programs, report=interrupt)
    return out


def test_it_is_resumed_with_the_same_bits(config, programs, whole, tmp_path):
    out = interrupted(config, programs, tmp_path)
    assert train(config, out, EVERY_2, programs=programs).steps == whole[1].steps == 6
    assert digest(out) == digest(whole[0])


def test_the_run_knows_the_names_of_the_classes(whole):
    assert read_description(whole[0])["label_names"] == ["a b", "犬"]
    assert len(json.loads((whole[0] / "data.json").read_text())["fingerprint"]) == 64


def test_its_training_error_is_of_all_classes(programs):
    """The first images, on which it is computed, are not those of one class alone."""
    labels = [programs.train_split.read(i)[1] for i in range(len(programs.test_split))]
    assert len(np.unique(labels)) == 2


def test_a_folder_that_has_changed_is_refused(config, programs, folder, tmp_path):
    """In the same process too, whether or not its programs are compiled again."""
    out = interrupted(config, programs, tmp_path)
    image = folder / "a b" / "0.jpg"
    before = image.read_bytes()
    try:
        image.write_bytes(before + b"one more byte")
        for restart in (functools.partial(train, programs=programs), train_again):
            with pytest.raises(InputError, match="is another one than this run began with"):
                restart(config, out, EVERY_2)
        image.write_bytes(before)
        write_images(folder / "犬" / "new", 5, seed=9)
        with pytest.raises(InputError, match="is another one than this run began with"):
            train_again(config, out, EVERY_2)
        with pytest.raises(InputError, match=r"has \d+ images for split .*, expected \d+"):
            compile_training(config, EVERY_2, make=THIN)  # made before they were there
    finally:
        image.write_bytes(before)
        shutil.rmtree(folder / "犬" / "new", ignore_errors=True)


def train_again(config, out, options):
    """With a configuration of the data as they are now."""
    train(dataclasses.replace(config), out, options, make=THIN)


def test_arrays_whose_labels_have_changed_are_refused(tmp_path):
    """With the same sizes, mean and std."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    config = train_config("own/thin", str(tmp_path / "own.npz"), batch_size=8, epochs=2)
    out = interrupted(config, compile_training(config, EVERY_2, make=THIN), tmp_path / "run")
    np.savez(tmp_path / "own.npz", images=images, labels=rng.permutation(labels))
    with pytest.raises(InputError, match="is another one than this run began with"):
        train_again(config, out, EVERY_2)


@pytest.fixture
def moved(whole, folder, tmp_path):
    """The run and the data on another machine: in other places."""
    shutil.copytree(whole[0], tmp_path / "run")
    folder.rename(folder.with_name("elsewhere"))
    yield tmp_path / "run", folder.with_name("elsewhere")
    folder.with_name("elsewhere").rename(folder)


def test_a_run_opens_without_its_data_and_takes_them_from_a_new_path(config, whole, folder, moved):
    run, elsewhere = moved
    opened = open_run(run, make=THIN)
    assert opened.dataset.label_names == ("a b", "犬") and opened.config == read_config(run)
    with pytest.raises(InputError, match=r"is not at .*my images; put it there, or give another"):
        opened.batch(4)
    batch = open_run(run, make=THIN, dataset=str(elsewhere)).batch(4, "test")
    assert batch["image"].shape == (4, 16, 16, 3)
    with pytest.raises(InputError, match="dataset is 'digits'; allowed: one of the 2 classes"):
        open_run(run, make=THIN, dataset="digits")


def test_data_of_other_classes_under_the_same_path_are_refused(moved, folder):
    """Where they are read; the network knows its own."""
    write_classes(folder, {"a b": 5, "cat": 5})
    try:
        opened = open_run(moved[0], make=THIN)
        assert opened.dataset.label_names == ("a b", "犬")
        with pytest.raises(InputError, match=r"has the classes a b, cat; expected: a b, 犬"):
            opened.batch(4)
    finally:
        shutil.rmtree(folder)


def test_another_split_is_another_data_set(config, programs, folder, tmp_path):
    """As `deepjax train --test-fraction 0.4 --split-seed 3` names it."""
    name = named_split(str(folder), 0.4, 3)
    assert name == f"{folder}[test_fraction=0.4,split_seed=3]"
    other = dataset_info(name)
    assert (other.train_size, other.test_size) == (18, 12)  # 0.4 of 20 and of 10
    assert dataset_info(f"{name}[:5]").train_size == 5
    out = interrupted(config, programs, tmp_path)
    with pytest.raises(InputError, match=r"dataset is '.*0\.4,split_seed=3\]', there '.*images'"):
        train(dataclasses.replace(config, dataset=name), out, EVERY_2, make=THIN)


@pytest.mark.parametrize(
    ("name", "fraction", "message"),
    [
        ("digits", 0.1, "test_fraction is 0.1; allowed: the path of your own images as dataset"),
        ("{}", 1.5, "test_fraction is 1.5; allowed: above 0, below 1"),
        ("{}[test_fraction=0.4]", 0.1, "allowed: the path of your own images"),
    ],
)
def test_splits_that_are_refused(name, fraction, message, folder):
    with pytest.raises(InputError, match=message):
        named_split(name.format(folder), fraction, None)


def test_data_with_a_test_split_have_no_fraction(tmp_path):
    for split in ("train", "val"):
        write_classes(tmp_path / split, {"a": 2, "b": 2})
    for name in (named_split, lambda *_: dataset_info(f"{tmp_path}[test_fraction=0.3]")):
        with pytest.raises(InputError, match="has a test split of its own; leave out"):
            name(str(tmp_path), 0.3, None)
