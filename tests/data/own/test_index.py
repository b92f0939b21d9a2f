"""Folders of classes and CSV lists: what they hold, and one line for what they may not."""

import csv
import dataclasses
import functools
import os

import numpy as np
import pytest
from PIL import Image

from deepjax.cli.__main__ import start
from deepjax.data import EncodedSplit, dataset_info, load_split, own_dataset, register
from deepjax.data.image.crops import centre_box
from deepjax.data.own.fingerprint import current_fingerprint
from deepjax.data.own.index import open_index, stratified_rows
from deepjax.errors import InputError
from deepjax.training import TrainConfig
from tests.data.own.images import write_classes, write_images

CLASSES = {"ant hill": 5, "cat": 10, "Ωmega": 6, "犬": 5}
EXPECTED_TESTS = ["ant hill/0.jpg", "Ωmega/4.jpg", "cat/3.jpg", "cat/7.jpg", "犬/1.jpg"]


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


def test_the_splits_depend_on_names_and_seed_alone(folder, tmp_path):
    """The images of the default are those of every release, from the random stream."""
    copy = write_classes(tmp_path / "copy", CLASSES, seed=5)
    one, same = (load_split(dataset_info(str(path)), "test") for path in (folder, copy))
    other = load_split(own_dataset(str(folder), "other", split_seed=1), "test")
    assert names(one) == names(same) == EXPECTED_TESTS
    assert names(one) != names(other)


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


@pytest.mark.parametrize("classes", [("car", "train"), ("test", "val"), ("fake/cat", "real/cat")])
def test_classes_that_might_be_taken_for_splits(classes, tmp_path):
    write_classes(tmp_path, dict.fromkeys(classes, 3))
    assert dataset_info(str(tmp_path)).label_names == tuple(name.split("/")[0] for name in classes)


def test_folders_of_tests_alone(tmp_path):
    """As many as there are, and none of them for training."""
    write_classes(tmp_path / "test", {"a": 3, "b": 2})
    dataset = dataset_info(str(tmp_path))
    assert (dataset.train_size, dataset.test_size, dataset.label_names) == (0, 5, ("a", "b"))
    assert len(load_split(dataset, "test")) == 5
    with pytest.raises(InputError, match="allowed: one with training and test images"):
        TrainConfig("resnet18", str(tmp_path))
    write_classes(tmp_path / "val", {"a": 1, "b": 1})
    assert dataset_info(str(tmp_path)).test_size == 2  # the first of the names


def test_a_list_of_tests_alone(tmp_path):
    write_images(tmp_path, 2)
    (tmp_path / "list.csv").write_text("path,label,split\n0.jpg,a,test\n1.jpg,b,test\n")
    dataset = dataset_info(str(tmp_path / "list.csv"))
    assert (dataset.train_size, dataset.test_size) == (0, 2)


def test_all_images_are_for_tests_with_the_fraction_1(folder):
    dataset = own_dataset(str(folder), "tests", test_fraction=1)
    assert (dataset.train_size, dataset.test_size) == (0, sum(CLASSES.values()))
    assert sorted(names(load_split(dataset, "test"))) == sorted(
        os.path.join(name, f"{i}.jpg") for name, count in CLASSES.items() for i in range(count)
    )


def test_nested_folders_links_and_other_files(folder):
    write_images(folder / "cat" / "more" / "deep", 2, seed=7)
    (folder / "cat" / "notes.txt").write_text("not an image")
    for hidden in (".hidden.jpg", "._photo.webp", ".cache.gif"):
        (folder / "cat" / hidden).write_bytes(b"")
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
    before = current_fingerprint(str(folder))
    now = functools.partial(current_fingerprint, str(folder))
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
    elif kind == "splits of other names":
        for name in ("training_set", "test_set"):
            write_classes(root / name, {"cat": 2, "dog": 2})
    elif kind == "train and dev":
        write_classes(root / "train", {"cat": 2, "dog": 2, "emu": 2})
        write_classes(root / "dev", {"dog": 2})
    elif kind in ("Train next to train", "training next to train"):
        for name in (kind.split()[0], "train", "val"):
            write_classes(root / name, {"a": 2, "b": 2})
    elif kind == "a tar file next to folders":
        write_classes(root, {"a": 2, "b": 2})
        (root / "backup.tar").write_bytes(b"")
    elif kind == "a tar file next to splits":
        write_classes(root / "train", {"a": 2, "b": 2})
        (root / "backup.TAR").write_bytes(b"")
    elif kind == "metadata in Parquet":
        write_classes(root, {"a": 2, "b": 2})
        for path in root.glob("*/*.jpg"):
            path.rename(path.with_suffix(".JPG"))
        (root / "metadata.parquet").write_bytes(b"")
    elif kind in ("{0..1}.npz", "{0..1}", "{3..1}.tar"):
        for number in range(2):
            write_classes(root / str(number), {"a": 2, "b": 2})
            (root / f"{number}.npz").write_bytes(b"")
        return root / kind
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
        ("splits of other names", r"folders test_set, training_set with a folder cat in each; al"),
        ("train and dev", r"folders dev, train with a folder dog in each; allowed: splits named"),
        ("Train next to train", "has the folders Train and train, of one split; keep one"),
        ("training next to train", "has the folders train and training, of one split; keep one"),
        ("a tar file next to folders", r"has backup\.tar next to images in folders"),
        ("a tar file next to splits", r"has backup\.TAR next to images in folders"),
        ("metadata in Parquet", r"has metadata\.parquet next to images in folders"),
        ("{0..1}.npz", r"1}\.npz'; allowed: a pattern of tar or of Parquet files"),
        ("{0..1}", r"1}'; allowed: a pattern of tar or of Parquet files"),
        ("{3..1}.tar", r"3\.\.1}\.tar'; allowed: {FIRST\.\.LAST} of 1 to 100,000 files"),
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


def test_a_folder_is_listed_as_it_is_now(folder, tmp_path, monkeypatch):
    """Under the same name: other images, and another folder in another place."""
    dataset = dataset_info(str(folder))
    (folder / names(load_split(dataset, "train"))[0]).unlink()
    assert dataset_info(str(folder)).train_size == dataset.train_size - 1
    with pytest.raises(InputError, match=r"has 20 images for split 'train', expected 21"):
        load_split(dataset, "train")
    monkeypatch.chdir(tmp_path)
    assert dataset_info(folder.name).num_classes == 4
    write_classes(tmp_path / "else" / folder.name, {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path / "else")
    assert dataset_info(folder.name).num_classes == 2


def test_arrays_are_read_again_when_they_have_changed(tmp_path):
    for count, value in ((20, 10), (40, 30)):
        images = np.full((count, 4, 4, 1), value, np.uint8)
        images[::2] += 2
        np.savez(tmp_path / "own.npz", images=images, labels=np.arange(count) % 2)
        assert dataset_info(str(tmp_path / "own.npz")).mean[0] == pytest.approx(value + 1, abs=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5,), "std": (0.25,)}, "mean and std are in units of stored pixels"),
        (
            {"train_split": "train[:80%]", "test_split": "train[60%:]", "test_size": 13},
            "both hold records 19 to 25 of 'train'",
        ),
        ({"train_size": 31}, "has 32 images for split 'train', expected 31"),
        ({"train_split": "train[:4]+train[5:8]", "train_size": 7}, "allowed: 'train', 'test' or"),
        ({"label_names": ("x", "y")}, "has the classes 0, 1; expected: x, y"),
    ],
)
def test_descriptions_that_do_not_fit_the_data(changes, message, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(40, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(40) % 2)
    dataset = dataclasses.replace(dataset_info(str(tmp_path / "own.npz")), **changes)
    with pytest.raises(InputError, match=message):
        load_split(dataset, "train")


def test_a_name_and_a_path_are_two_things(folder, tmp_path, monkeypatch):
    """Neither may hide the other."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'own images', which is a file or folder; register it"):
        register(own_dataset("own images", size=64))
    folder.rename(tmp_path / "digits")
    for command in (["check"], ["convert", "--output-dir", "new"]):
        with pytest.raises(InputError, match=r"images at that path; give \./digits for these"):
            start(["data", *command, "digits"])
    with pytest.raises(InputError, match=r"images at that path; give \./digits for these"):
        start(["train", "--model", "cifar_plain20", "--dataset", "digits", "--output-dir", "run"])
    assert dataset_info("digits").num_classes == 10 and dataset_info("./digits").num_classes == 4


def test_a_conversion_into_the_name_of_a_public_data_set(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start(["data", "convert", "own images", "--output-dir", "cifar10"])
    assert "read them with --dataset ./cifar10" in capsys.readouterr().out
    assert dataset_info("./cifar10").label_names == tuple(sorted(CLASSES))
