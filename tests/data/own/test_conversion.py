"""`deepjax data convert`: the same data set as before, bit by bit, read from ArrayRecord."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest

from deepjax.cli.__main__ import start
from deepjax.data import dataset_info, load_split, train_batches
from deepjax.data.image.decode import decode_rgb
from deepjax.data.prepare import own_images
from deepjax.errors import InputError
from tests.data.own import test_forms
from tests.data.own.images import write_classes
from tests.data.photographs import crops, jpeg


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Without a test split."""
    return write_classes(tmp_path_factory.mktemp("own") / "my photos", {"a b": 9, "犬": 12})


def records(path: object, split: str) -> list[tuple[str, bytes, int]]:
    """Names, bytes and labels in the order of training."""
    found = load_split(dataset_info(str(path)), split)  # pyright: ignore
    return [(found.records.name(i), *found.read(i)) for i in range(len(found))]


def convert(path: object, target: Path, *options: str) -> None:
    start(["data", "convert", str(path), "--output-dir", str(target), *options])


@pytest.mark.parametrize("form", [name for name in test_forms.FORMS if "JSON" not in name])
def test_every_form_is_the_same_data_set_afterwards(form, tmp_path):
    encoded = [jpeg(pixels) for pixels in crops(18, seed=3, shortest=16, longest=40)]
    images = [
        ("train" if i < 12 else "validation", each, test_forms.CLASSES[i % 3])
        for i, each in enumerate(encoded)
    ]
    path = test_forms.FORMS[form](tmp_path / "own", images)
    convert(path, tmp_path / "converted")
    before, after = dataset_info(str(path)), dataset_info(str(tmp_path / "converted"))
    assert after.label_names == before.label_names
    for split in ("train", "test"):
        assert records(tmp_path / "converted", split) == records(path, split)


def test_the_batches_of_a_training_are_bitwise_equal(photos, tmp_path):
    """Of two epochs, with crops; for a split by another seed, which the folder keeps."""
    convert(photos, tmp_path / "new", "--test-fraction", "0.4", "--split-seed", "7")
    name = f"{photos}[test_fraction=0.4,split_seed=7]"
    batches = [
        list(train_batches(load_split(dataset_info(each), "train"), 4, 1, 6, size_at=lambda _: 24))
        for each in (name, str(tmp_path / "new"))
    ]
    assert len(batches[0]) == 6
    for one, other in zip(*batches, strict=True):
        assert np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["label"], other["label"])
    assert records(tmp_path / "new", "test") == records(name, "test")


def test_larger_images_are_shrunk_and_the_others_kept(photos, tmp_path):
    convert(photos, tmp_path / "small", "--shorter-side", "20")
    sides = []
    before, after = (records(path, "train") for path in (photos, tmp_path / "small"))
    for (name, old, label), (same_name, new, same_label) in zip(before, after, strict=True):
        assert (name, label) == (same_name, same_label)
        sides.append(min(decode_rgb(old).shape[:2]))
        assert min(decode_rgb(new).shape[:2]) == min(20, sides[-1])
        assert (new == old) == (sides[-1] <= 20)
    assert min(sides) <= 20 < max(sides)


def test_a_conversion_that_was_stopped_goes_on_and_reads_no_shard_twice(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(own_images, "SHARD_BYTES", 3000)  # some images
    read, real, stop = itertools.count(), own_images.read_image, 8

    def stops(*given):
        if next(read) == stop:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(own_images, "read_image", stops)
    with pytest.raises(KeyboardInterrupt):
        convert(photos, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.new"]
    with pytest.raises(InputError, match="was begun from other data or for another size"):
        convert(photos, tmp_path / "new", "--shorter-side", "20")
    assert list((tmp_path / "unfinished.new").glob("images-train*-of-000??"))
    convert(photos, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert next(read) < stop + 1 + 21
    for split in ("train", "test"):
        assert records(tmp_path / "new", split) == records(photos, split)


def test_images_for_tests_alone(photos, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "test").symlink_to(photos)
    convert(tmp_path / "own", tmp_path / "new")
    dataset = dataset_info(str(tmp_path / "new"))
    assert (dataset.train_size, dataset.test_size) == (0, 21)
    assert records(tmp_path / "new", "test") == records(tmp_path / "own", "test")


def bad(kind: str, photos: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """The data and the options of a conversion that is refused."""
    if kind == "there already":
        (tmp_path / "new").mkdir()
    if kind == "under a file":
        (tmp_path / "file").write_text("")
        return photos, ["--output-dir", str(tmp_path / "file" / "new")]
    if kind == "within":
        return photos, ["--output-dir", str(photos / "new")]
    if kind == "arrays":
        images, labels = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 2
        np.savez(tmp_path / "own.npz", images=images, labels=labels)
        return tmp_path / "own.npz", ["--output-dir", str(tmp_path / "new")]
    more = {"side": ["--shorter-side", "3"], "fraction": ["--test-fraction", "1"]}
    return photos, ["--output-dir", str(tmp_path / "new"), *more.get(kind, [])]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("there already", "new, which exists; choose another, or remove it"),
        ("under a file", "new, which cannot be made: Not a directory"),
        ("within", "allowed: a folder outside of the data"),
        ("arrays", "arrays, which are in memory; nothing to convert"),
        ("side", "shorter_side is 3; allowed: 16 to 1024 pixels"),
        ("fraction", "test_fraction is 1.0; allowed: above 0, below 1"),
    ],
)
def test_what_is_refused_is_one_line_and_writes_nothing(kind, message, photos, tmp_path):
    path, options = bad(kind, photos, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message) as error:
        start(["data", "convert", str(path), *options])
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["missing", "cut", "rows"])
def test_a_damaged_folder_is_named(damage, photos, tmp_path):
    new = tmp_path / "new"
    convert(photos, new)
    [shard] = new.glob("images-train*")
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        (new / "train.rows.npz").write_bytes(b"no archive")
    read = functools.partial(records, new, "train")
    with pytest.raises(InputError, match="convert the data again") as error:
        read()
    assert "\n" not in str(error.value)
