"""A prepared data set compared with its description: label, shape, type, statistics, splits."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from deepjax.data import Dataset, load_split, sample
from deepjax.data.augment.basic import normalize
from deepjax.data.splits import Split
from deepjax.errors import InputError
from tests.data.made import png, write_examples

COUNT = 20
FEATURES = {
    "image": tfds.features.Image(shape=(6, 4, 1)),
    "label": tfds.features.ClassLabel(num_classes=10),
    "coarse": tfds.features.ClassLabel(num_classes=2),
    "number": tfds.features.Scalar(np.int32),
    "weight": tfds.features.Scalar(np.float32),
    "big": tfds.features.Scalar(np.uint64),
    "several": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=10)),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 4, 1)).astype(np.uint8)
SET = Dataset("made", (6, 4, 1), 10, COUNT, COUNT // 2, 127.0, 73.0, False, 0, "made up")


def example(i: int) -> dict:
    label = i % 10
    entries = {
        "label": label,
        "coarse": label % 2,
        "number": 9 - label,
        "weight": 0.5,
        "big": label,
        "several": [label],
    }
    return {"image": png(IMAGES[i])} | entries


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> str:
    """The set above; 16-bit images under the name "deep", and some that are no Image of tfds as
    "array".
    """
    folder = tmp_path_factory.mktemp("prepared")
    write_examples(
        folder,
        "made",
        FEATURES,
        {"train": [example(i) for i in range(COUNT)], "test": [example(i) for i in range(10)]},
    )
    deep = {
        "image": tfds.features.Image(shape=(6, 4, 1), dtype=np.uint16),
        "label": FEATURES["label"],
    }
    write_examples(
        folder,
        "deep",
        deep,
        {"train": [{"image": png(IMAGES[0].astype(np.uint16) * 257), "label": 0}]},
    )
    array = {
        "image": tfds.features.Tensor(shape=(6, 4, 1), dtype=np.float32),
        "label": FEATURES["label"],
    }
    write_examples(
        folder, "array", array, {"train": [{"image": IMAGES[0].astype(np.float32), "label": 0}]}
    )
    return str(folder)


@pytest.mark.parametrize(
    ("label", "classes", "of"),
    [("label", 10, "label"), ("coarse", 2, "coarse"), ("number", 10, "number")],
)
def test_labels_are_those_of_the_declared_entry(prepared, label, classes, of):
    split = load_split(
        dataclasses.replace(SET, label=label, num_classes=classes), "train", prepared
    )
    np.testing.assert_array_equal(split.labels, [example(i)[of] for i in range(COUNT)])
    np.testing.assert_array_equal(split.images, IMAGES)


@pytest.mark.parametrize("label", ["no_such_entry", "image", "weight", "big", "several", ""])
def test_what_is_no_class_is_refused_by_name(prepared, label):
    words = (
        rf"label is '{label}'; allowed: an entry with one class \(ClassLabel or integer\) of: "
        "'big', 'coarse', 'image', 'label'"
    )
    with pytest.raises(InputError, match=words):
        load_split(dataclasses.replace(SET, label=label), "train", prepared)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_classes": 9}, "num_classes is 9; the entry 'label' of its records has 10"),
        (
            {"label": "number", "num_classes": 8},
            r"record 0 has label 9; allowed: 0 to 7 \(4 such records\)",
        ),
        (
            {"shape": (4, 6, 1)},
            r"shape is \(4, 6, 1\); its images are stored with shape \(6, 4, 1\)",
        ),
        (
            {"shape": (6, 4, 3)},
            r"shape is \(6, 4, 3\); its images are stored with shape \(6, 4, 1\)",
        ),
        (
            {"mean": 0.5, "std": 0.25},
            r"has mean \[0.5\] and std \[0.25\]; its images have mean .*units of stored pixels",
        ),
        ({"train_size": 19}, r"split 'train' holds 20 records, expected 19 \(train_size\)"),
        (
            {"train_split": "training"},
            r"train_split is 'training' .*allowed: 'train' with 20 records, 'test' with 10 records",
        ),
        (
            {"train_split": "train[:21]"},
            r"train_split is 'train\[:21\]' .*allowed: 'train' with 20 records",
        ),
        ({"train_split": "train[7:3]"}, r"train_split is 'train\[7:3\]' \(a part is empty\)"),
        (
            {"train_split": "train[:12]", "test_split": "train[10:]"},
            "train_split and test_split both hold records 10 to 11 of 'train'",
        ),
        (
            {"train_split": "train[:60%]", "test_split": "train[-9:]"},
            "both hold records 11 to 11 of 'train'",
        ),
        (
            {"train_split": "train[:12]+train[8:]"},
            "train_split holds records 8 to 11 of 'train' twice",
        ),
        (
            {"builder": "deep", "test_size": 0, "train_size": 1},
            "images are stored as uint16; allowed: uint8",
        ),
        (
            {"builder": "array", "test_size": 0, "train_size": 1},
            "records need an entry 'image' that is an Image of tfds",
        ),
    ],
)
def test_what_is_not_as_declared_is_named(prepared, fields, words):
    with pytest.raises(InputError, match=words) as caught:
        load_split(dataclasses.replace(SET, **fields), "train", prepared)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "test", "kept", "tested"),
    [
        ("train[:12]", "train[12:]", range(12), range(12, 20)),
        ("train[25%:]", "train[:25%]", range(5, 20), range(5)),
        ("train[:-5]+test[5:]", "test[:50%]", [*range(15), *range(5, 10)], range(5)),
    ],
)
def test_both_splits_may_be_parts(prepared, train, test, kept, tested):
    parts = {
        "train_split": train,
        "test_split": test,
        "train_size": len(kept),
        "test_size": len(tested),
    }
    dataset = dataclasses.replace(SET, **parts)
    for split, ids in (("train", kept), ("test", tested)):
        np.testing.assert_array_equal(
            load_split(dataset, split, prepared).images, IMAGES[list(ids)]
        )


def test_a_split_without_images_and_one_that_is_none(prepared):
    with pytest.raises(InputError, match="has no images for split 'test': its test_size is 0"):
        load_split(dataclasses.replace(SET, test_size=0), "test", prepared)
    with pytest.raises(InputError, match="split is 'validation'; allowed: 'train' or 'test'"):
        load_split(SET, "validation", prepared)


def test_several_labels_are_for_photographs_that_are_tested_on(prepared):
    """As ReaL's; a sample for instruments has no use for them."""
    photographs = {
        "encoded": True,
        "shape": (4, 4, 3),
        "mean": 127.0,
        "std": 73.0,
        "label": "several",
    }
    with pytest.raises(InputError, match="label is 'several'; allowed: an entry with one class"):
        load_split(dataclasses.replace(SET, **photographs), "train", prepared)
    tested = dataclasses.replace(SET, **photographs, train_size=0)
    assert len(load_split(tested, "test", prepared)) == 10
    with pytest.raises(InputError, match="has several labels an image, or none, in 'several'"):
        sample(tested, 4, split="test", data_dir=prepared)


@pytest.mark.parametrize(
    "arguments", [{"seed": -1}, {"image_size": -1}, {"size": 0}, {"size": COUNT + 1}]
)
def test_samples_that_cannot_be(prepared, arguments):
    with pytest.raises(InputError, match=f"{next(iter(arguments))} is "):
        sample(SET, **({"size": 4, "data_dir": prepared} | arguments))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES.astype(np.float32), np.zeros(COUNT, np.int32)),
        (IMAGES.astype(np.uint16), np.zeros(COUNT, np.int32)),
        (IMAGES, np.zeros(COUNT, np.float32)),
        (IMAGES, np.zeros(COUNT - 1, np.int32)),
        (IMAGES[..., 0], np.zeros(COUNT, np.int32)),
    ],
)
def test_arrays_of_another_type_are_refused(images, labels):
    with pytest.raises(
        InputError, match=r"images, labels is .*; allowed: uint8 \(n, h, w, c\), int32 \(n,\)"
    ):
        Split(images, labels)


def test_images_of_other_channels_are_not_normalised():
    """One mean would be broadcast over three channels."""
    with pytest.raises(InputError, match="images of 1 channels, as made has"):
        normalize(np.zeros((2, 6, 4, 3), np.uint8), SET)


def test_a_stored_jpeg_without_its_end_is_damaged(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(
        file, "JPEG"
    )
    cut = file.getvalue()[:-2] + bytes(20)
    features = {
        "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="jpeg"),
        "label": FEATURES["label"],
    }
    write_examples(tmp_path, "cut", features, {"train": [{"image": io.BytesIO(cut), "label": 0}]})
    dataset = Dataset("cut", (32, 32, 3), 10, 1, 0, 127.0, 73.0, False, 0, "made up")
    with pytest.raises(InputError, match=r"record 0 is corrupt .*JPEG without its end marker"):
        load_split(dataset, "train", str(tmp_path))
