"""What the catalog promises of its sets, against tfds's own definitions, and sets of one's own."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from deepjax.data import Dataset, catalog, dataset_info, list_datasets, load_split, register
from deepjax.data.embedded import EMBEDDED
from deepjax.errors import InputError


@pytest.fixture(autouse=True)
def _forgets(monkeypatch):
    monkeypatch.setattr(catalog, "CATALOG", dict(catalog.CATALOG))


@pytest.mark.parametrize("name", [name for name in list_datasets() if name not in EMBEDDED])
def test_names_and_entries_are_those_of_tfds(name, tmp_path):
    """Imagenette and the test sets after ImageNet are labelled in tfds's own classes, under
    `label`.
    """
    dataset = dataset_info(name)
    builder = tfds.builder(dataset.builder, data_dir=tmp_path)
    label = builder.info.features[dataset.label]
    assert getattr(label, "feature", label).num_classes == dataset.num_classes
    shape = builder.info.features["image"].shape
    assert shape == ((None, None, 3) if dataset.encoded else dataset.shape)


def test_imagenet_is_normalised_as_torchvision_does():
    """torchvision.transforms' documentation.

    Mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225).
    """
    dataset = dataset_info("imagenet2012")
    assert dataset.mean == pytest.approx((123.675, 116.28, 103.53))
    assert dataset.std == pytest.approx((58.395, 57.12, 57.375))
    assert (dataset.train_size, dataset.test_size, dataset.test_split) == (
        1_281_167,
        50_000,
        "validation",
    )


def test_a_set_of_ones_own_is_known_by_its_name():
    mine = dataclasses.replace(dataset_info("imagenet2012"), name="mine", train_size=64)
    assert register(mine) is mine and register(dataclasses.replace(mine)) == mine
    assert dataset_info("mine").builder == "imagenet2012" and "mine" in list_datasets()


PHOTOGRAPHS, DIGITS = dataset_info("imagenet2012"), dataset_info("digits")


@pytest.mark.parametrize(
    ("of", "fields", "words"),
    [
        (
            PHOTOGRAPHS,
            {"shape": (224, 224, 1)},
            r"shape is \(224, 224, 1\); allowed: \(side, side, 3\) .* grey ones are read as RGB",
        ),
        (
            PHOTOGRAPHS,
            {"shape": (64, 96, 3)},
            r"shape is \(64, 96, 3\); allowed: \(side, side, 3\) for photographs .* to a square",
        ),
        (
            PHOTOGRAPHS,
            {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            "std is .*units of stored pixels, 0 to 255",
        ),
        (DIGITS, {"label_names": ("a", "b")}, r"\('a', 'b'\); allowed: \(\) or 10 texts of"),
        (DIGITS, {"label_names": ("a\n",) * 10}, r"label_names is .*; allowed: \(\) or 10 texts"),
        (DIGITS, {"label_names": "abcdefghij"}, r"label_names is 'abc.*; allowed: \(\) or 10"),
        (DIGITS, {"test_fraction": 1.5}, "test_fraction is 1.5; allowed: 0 to 1"),
        (DIGITS, {"split_seed": -1}, "split_seed is -1; allowed: 0 to 2147483647"),
        (
            DIGITS,
            {"mean": (1.0, 2.0, 3.0)},
            r"mean is \(1.0, 2.0, 3.0\); allowed: one number, 0 to 255",
        ),
        (
            PHOTOGRAPHS,
            {"std": (60.0, 60.0)},
            r"std is \(60.0, 60.0\); allowed: 3 numbers, one a channel, or one number for all",
        ),
        (DIGITS, {"std": (0.0,)}, "std is .*above 0"),
        (DIGITS, {"mean": (float("nan"),)}, "mean is .*nan"),
        (DIGITS, {"shape": (8, 8)}, r"shape is \(8, 8\); allowed: \(height, width, channels\)"),
        (DIGITS, {"shape": (8, 8, 5)}, "shape is .*1, 3 or 4 channels"),
        (DIGITS, {"shape": (8, 0, 1)}, "shape is"),
        (DIGITS, {"num_classes": 10.0}, "num_classes is 10.0; allowed: 2 or more"),
        (DIGITS, {"train_size": -1}, "train_size is -1; allowed: 0"),
        (DIGITS, {"train_size": 0, "test_size": 0}, "train_size and test_size are both 0"),
        (DIGITS, {"crop": 9}, "crop is 9; allowed: 0 .* to 8 pixels"),
        (DIGITS, {"flip": "no"}, "flip is 'no'; allowed: True or False"),
        (DIGITS, {"name": "two\nlines"}, r"name of a data set is 'two\\nlines'"),
        (
            DIGITS,
            {"test_split": "test[:3.5]"},
            r"test_split is 'test\[:3.5\]'; allowed: a split such as 'train'",
        ),
        (DIGITS, {"test_split": "all"}, "test_split is 'all'"),
        # of which tfds takes 10 % to 50 %
        (
            DIGITS,
            {"test_split": "train[10:50%]"},
            r"test_split is 'train\[10:50%\]'",
        ),
        (
            DIGITS,
            {"test_split": "train"},
            "train_split is 'train' and test_split 'train', which both hold records of 'train'",
        ),
        (
            DIGITS,
            {"test_split": "train[400:]"},
            r"which both hold records of 'train'; give parts .* such as 'train\[:80%\]'",
        ),
    ],
)
def test_what_no_data_set_can_be_is_refused_by_field(of, fields, words):
    with pytest.raises(InputError, match=words) as caught:
        register(dataclasses.replace(of, **({"name": "mine"} | fields)))
    assert "\n" not in str(caught.value) and "mine" not in list_datasets()


def test_one_mean_stands_for_all_channels_and_lists_become_tuples():
    mine = dataclasses.replace(PHOTOGRAPHS, mean=[128], std=60, shape=[96, 96, 3])
    assert (mine.mean, mine.std, mine.shape) == ((128.0,) * 3, (60.0,) * 3, (96, 96, 3))


def test_what_is_no_description_is_refused():
    with pytest.raises(
        InputError, match=r"dataset is 'cifar10'; allowed: a deepjax\.data\.Dataset"
    ):
        register("cifar10")


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(InputError, match="dataset 'cifar10' is another one already"):
        register(dataclasses.replace(dataset_info("cifar10"), test_size=1))


def test_the_builder_is_the_name_where_none_is_given():
    assert Dataset("x", (8, 8, 1), 2, 1, 1, (0.0,), (1.0,), False, 0, "here").builder == "x"


def test_a_name_with_a_number_has_the_first_training_images_alone():
    part, whole = dataset_info("digits[:400]"), DIGITS
    assert part == dataclasses.replace(
        whole, name="digits[:400]", builder="digits", train_size=400, train_split="train[:400]"
    )
    found, full = (load_split(each, "train") for each in (part, whole))
    np.testing.assert_array_equal(found.images, full.images[:400])
    np.testing.assert_array_equal(found.labels, full.labels[:400])
    assert len(load_split(part, "test")) == whole.test_size
    assert "digits[:400]" not in list_datasets()


@pytest.mark.parametrize(("name", "train"), [("digits[-37:]", 1400), ("digits[:400][-37:]", 400)])
def test_the_last_training_images_are_held_out_in_place_of_test_images(name, train):
    held_out = dataset_info(name)
    assert (held_out.train_size, held_out.test_size) == (train, 37)
    full = load_split(DIGITS, "train")
    for split, rows in (("train", slice(train)), ("test", slice(1400, None))):
        found = load_split(held_out, split)
        np.testing.assert_array_equal(found.images, full.images[rows])
        np.testing.assert_array_equal(found.labels, full.labels[rows])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits[:0]", r"digits\[:M\]\[-N:\] with M and N from 1, together up to 1437"),
        ("digits[:1438]", r"digits\[:M\]\[-N:\] with M and N from 1, together up to 1437"),
        ("digits[-0:]", r"digits\[:M\]\[-N:\] with M and N from 1"),
        ("digits[-1437:]", r"digits\[:M\]\[-N:\] with M and N from 1"),
        ("digits[:1400][-38:]", r"digits\[:M\]\[-N:\] with M and N from 1"),
        ("digit[:400]", "did you mean 'digits'"),
        ("digits[400:]", "did you mean 'digits'"),
        ("digits[:400][:10]", r"'digits\[:400\]' is unknown"),
        ("half[:400]", "half, which is a part of a split already"),
    ],
)
def test_other_parts_are_refused(name, words):
    register(dataclasses.replace(DIGITS, name="half", train_split="train[700:]", train_size=737))
    with pytest.raises(InputError, match=words):
        dataset_info(name)
