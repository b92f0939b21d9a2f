"""Folders of classes and CSV lists: what they hold, and one line for what they may not."""

import csv
import functools
import os

import numpy as np
import pytest
from PIL import Image

from deepjax.data import EncodedSplit, dataset_info, load_split, own_dataset, register
from deepjax.data.image.crops import centre_box
from deepjax.data.own.fingerprint import fingerprint_of
from deepjax.data.own.index import open_index, stratified_rows
from deepjax.errors import InputError
from tests.data.own.images import write_classes, write_images

CLASSES = {"ant hill": 5, "cat": 10, "Ωmega": 6, "犬": 5}


@pytest.fixture
def folder(tmp_path):
    return write_classes(tmp_path / "own images", CLASSES)


def names(split):
    return [split.records.name(i) for i in range(len(split))]


def test_each_class_gives_a_fifth_for_tests_and_both_splits_mix_the_classes(folder):
    dataset = dataset_info(str(folder))
    assert dataset.label_names == tuple(sorted(CLASSES)) and dataset.num_classes == 4
    train, test = (load_split(dataset, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (dataset.train_size, dataset.test_size) == (21, 5)
    labels = [test.read(i)[1] for i in range(len(test))]
    assert sorted(labels) == [0, 1, 1, 2, 3] and labels != sorted(labels)
    everything = {*names(train), *names(test)}
    assert len(everything) == sum(CLASSES.values())
    for split in (train, test):
        for i, name in enumerate(names(split)):
            encoded, label = split.read(i)
            assert dataset.label_names[label] == name.split(os.sep)[0]
            assert encoded == (folder / name).read_bytes()


def test_the_same_path_has_the_same_splits_and_another_seed_others(folder):
    one, same = (load_split(dataset_info(str(folder)), "test") for _ in range(2))
    other = load_split(own_dataset(str(folder), "other", split_seed=1), "test")
    assert names(one) == names(same) != names(other)


def test_a_part_of_the_images_and_images_held_out(folder):
    full = load_split(dataset_info(str(folder)), "train")
    part = dataset_info(f"{folder}[:10][-5:]")
    assert names(load_split(part, "train")) == names(full)[:10]
    assert names(load_split(part, "test")) == names(full)[-5:]


def test_train_and_val_folders_are_the_splits(tmp_path):
    write_classes(tmp_path / "train", {"a": 3, "b": 4})
    write_classes(tmp_path / "val", {"b": 2}, seed=1)
    dataset = dataset_info(str(tmp_path))
    assert (dataset.train_size, dataset.test_size, dataset.label_names) == (7, 2, ("a", "b"))
    assert load_split(dataset, "test").read(0)[1] == 1
    write_classes(tmp_path / "test", {"c": 1})  # not the first of the names
    open_index.cache_clear()
    assert dataset_info(str(tmp_path)).test_size == 2


@pytest.mark.parametrize(("train", "test"), [("Training", "Testing"), ("TRAIN", "Val")])
def test_the_names_of_split_folders_may_have_capitals(train, test, tmp_path):
    write_classes(tmp_path / train, {"a": 3, "b": 4})
    write_classes(tmp_path / test, {"a": 2})
    dataset = dataset_info(str(tmp_path))
    assert (dataset.train_size, dataset.test_size, dataset.label_names) == (7, 2, ("a", "b"))


def test_empty_columns_of_a_list_do_not_shift_the_others(tmp_path):
    write_images(tmp_path, 4)
    (tmp_path / "list.csv").write_text(
        "path,,,label,confidence\n0.jpg,x,y,a,0.1\n1.jpg,,,b,0.2\n\n2.jpg,,,a,0.3\n3.jpg,,,b\n"
    )
    index = open_index(str(tmp_path / "list.csv"))
    assert index.label_names == ("a", "b")
    assert index.splits["train"].labels.tolist() == [0, 1, 0, 1]


def test_a_class_may_be_named_train(tmp_path):
    write_classes(tmp_path, {"car": 3, "train": 4})
    assert dataset_info(str(tmp_path)).label_names == ("car", "train")


def test_nested_folders_links_and_other_files(folder):
    write_images(folder / "cat" / "more" / "deep", 2, seed=7)
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / "cat" / ".hidden.jpg").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / "cat" / "back").symlink_to(folder / "cat")
    index = open_index(str(folder))
    assert len(index.splits["train"]) == sum(CLASSES.values()) + 2
    assert index.label_names == tuple(sorted(CLASSES))


def test_a_list_in_csv(folder, tmp_path):
    rows = [
        (os.path.join("own images", name, f"{i}.jpg"), name, "val" if i == 0 else "train")
        for name, count in CLASSES.items()
        for i in range(count)
    ]
    file = tmp_path / "list.csv"
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([("Path", "Label", "split"), *rows])
    dataset = dataset_info(str(file))
    assert dataset.label_names == tuple(sorted(CLASSES))
    assert (dataset.train_size, dataset.test_size) == (22, 4)
    for split in ("train", "test"):
        images = load_split(dataset, split)
        for i, name in enumerate(names(images)):
            assert dataset.label_names[images.read(i)[1]] == name.split(os.sep)[1]


def test_numbers_as_labels_are_sorted_by_value(tmp_path):
    write_images(tmp_path, 3)
    (tmp_path / "list.csv").write_text("file,class\n0.jpg,10\n1.jpg,9\n2.jpg,10\n")
    assert open_index(str(tmp_path / "list.csv")).label_names == ("9", "10")


def test_it_can_be_registered_under_a_name_with_other_options(folder):
    known = register(own_dataset(str(folder), "small_own", size=64, test_fraction=0.4))
    assert dataset_info("small_own") == known and known.shape == (64, 64, 3)
    assert len(load_split(known, "test")) == 10


@pytest.mark.parametrize(("count", "tests"), [(1, 0), (2, 1), (3, 2), (10, 5)])
def test_of_each_class_some_images_remain_for_training(count, tests):
    labels = np.repeat([0, 1], count)
    rows = stratified_rows(labels, 0.5, seed=0)
    assert np.bincount(labels[rows], minlength=2).tolist() == [tests, tests]


def test_the_fingerprint_follows_names_labels_and_contents(folder):
    before = fingerprint_of(open_index(str(folder)).splits)

    def now():
        open_index.cache_clear()
        return fingerprint_of(open_index(str(folder)).splits)

    assert now() == before
    path = folder / "cat" / "0.jpg"
    encoded = path.read_bytes()
    path.write_bytes(encoded[:-10] + bytes([encoded[-10] ^ 1]) + encoded[-9:])
    changed = now()
    path.write_bytes(encoded)
    path.rename(folder / "cat" / "new.jpg")
    renamed = now()
    (folder / "cat" / "new.jpg").rename(folder / "犬" / "new.jpg")
    assert len({before, changed, renamed, now()}) == 4


def test_a_file_that_has_gone_is_named(folder):
    split = load_split(dataset_info(str(folder)), "train")
    (folder / names(split)[3]).unlink()
    with pytest.raises(InputError, match=r"\.jpg cannot be read: No such file"):
        split.read(3)


def test_an_image_that_cannot_be_decoded_is_named(folder):
    split = load_split(dataset_info(str(folder)), "train")
    (folder / names(split)[3]).write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"{os.path.basename(names(split)[3])} is corrupt"):
        split.eval_images([3], lambda height, width: None, 8)  # pyright: ignore


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_least_and_the_largest_image_in_a_training(folder):
    """One pixel is scaled up; 100 megapixels are refused in one line."""
    split = load_split(dataset_info(str(folder)), "train")
    one, two = (folder / name for name in names(split)[:2])
    Image.new("RGB", (1, 1), (10, 20, 30)).save(one, "PNG")
    Image.new("1", (10_000, 10_000)).save(two, "PNG")
    box = functools.partial(centre_box, size=8, crop_ratio=1.0)
    assert isinstance(split, EncodedSplit)
    assert (split.train_images([0], [box], 8)["image"] == (10, 20, 30)).all()
    with pytest.raises(InputError, match=r"10000 x 10000 pixels; .*; replace that image, or set"):
        split.train_images([1], [box], 8)


def bad(tmp_path, kind: str):
    """A path of a kind that is refused."""
    root = tmp_path / "own"
    if kind == "missing":
        return root
    if kind == "text":
        root.write_text("text")
    elif kind == "no folders":
        write_images(root, 2)
    elif kind == "empty class":
        write_classes(root, {"a": 2, "b": 2})
        (root / "c").mkdir()
    elif kind == "one class":
        write_classes(root, {"a": 2})
    elif kind == "webp":
        write_classes(root, {"a": 2, "b": 2})
        (root / "b" / "x.webp").write_bytes(b"")
    elif kind == "another class in val":
        write_classes(root / "train", {"a": 2, "b": 2})
        write_classes(root / "val", {"c": 2})
    elif kind == "splits and more":
        for name in ("Train", "Val", "extra"):
            write_classes(root / name, {"a": 2, "b": 2})
    elif kind == "a tar file next to folders":
        write_classes(root, {"a": 2, "b": 2})
        (root / "backup.tar").write_bytes(b"")
    elif kind == "single images":
        write_classes(root, {"a": 1, "b": 1})
    return root


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist; allowed: a folder with a folder of JPEG"),
        ("text", "a file; allowed: a folder with"),
        ("no folders", "has no folders in it; allowed"),
        ("empty class", "c has no JPEG or PNG images; add some, or remove the folder"),
        ("one class", "has one class only, 'a'; allowed: two or more"),
        ("webp", r"x\.webp is neither JPEG nor PNG; convert such images"),
        ("another class in val", "has a folder for the class 'c', .*train has none"),
        ("splits and more", "has the folders Train and Val, and also extra; allowed: splits"),
        ("a tar file next to folders", r"has backup\.tar next to images in folders"),
        ("single images", "test_fraction is 0.2; allowed: more, with so few images"),
    ],
)
def test_what_is_no_data_set_is_one_line(tmp_path, kind, message):
    with pytest.raises(InputError, match=message) as error:
        dataset_info(str(bad(tmp_path, kind)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none; allowed: a header with one of path"),
        ("path,size\n0.jpg,3\n", "has the columns path, size; allowed: a header with one of label"),
        ("path,label\n", "has no rows"),
        ("path,label,label\n0.jpg,a,b\n", "has the column 'label' twice; keep one of them"),
        ("path,label\n0.jpg,\n", "line 2: path is '0.jpg' and label ''; give both"),
        ("path,label\n0.jpg,a\n9.jpg,b\n", r"lists '9\.jpg', which is no file \(1 of 2 are none\)"),
        ("path,label\n0.jpg,a\n0.jpg,b\n", r"lists '0\.jpg' 2 times; give each image once"),
        ("path,label\n0.jpg,a\nlist.csv,b\n", r"lists 'list\.csv'; allowed: files \.jpg"),
        ("path,label,split\n0.jpg,a,dev\n", "line 2: split is 'dev'; allowed: train"),
        ("path,label,split\n0.jpg,a,test\n1.jpg,b,test\n", "has no images for training"),
        (
            "path,label,split\n0.jpg,a,train\n1.jpg,b,test\n",
            "the class 'b' in its test split alone",
        ),
    ],
)
def test_lists_that_do_not_fit_are_one_line(tmp_path, text, message):
    write_images(tmp_path, 2)
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        dataset_info(str(tmp_path / "list.csv"))
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_told_that_a_path_would_do():
    with pytest.raises(InputError, match=r"'my_photos' is unknown; .*the path of a folder"):
        dataset_info("my_photos")
