"""Every form holds the same images with the same labels in the same splits."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from deepjax.data import Split, dataset_info, load_split
from deepjax.data.own.check import check_images
from deepjax.data.own.index import open_index
from deepjax.errors import InputError
from tests.data.photographs import crops, jpeg

CLASSES = ("zebra", "cat", "犬")  # not sorted
Image = tuple[str, bytes, str]  # split, encoded, class


@pytest.fixture(scope="module")
def images() -> list[Image]:
    """12 training and 6 validation images of three classes."""
    encoded = [jpeg(pixels) for pixels in crops(18, seed=3, shortest=16, longest=40)]
    return [
        ("train" if i < 12 else "validation", each, CLASSES[i % 3])
        for i, each in enumerate(encoded)
    ]


def folder(root: Path, images: list[Image]) -> Path:
    for i, (split, encoded, name) in enumerate(images):
        path = root / split / name / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    return root


def csv_list(root: Path, images: list[Image]) -> Path:
    folder(root, images)
    with (root / "list.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["split", "label", "file"])
        for i, (split, _, name) in enumerate(images):
            writer.writerow([split, name, f"{split}/{name}/{i}.jpg"])
    return root / "list.csv"


def tar_files(root: Path, images: list[Image], label: str) -> Path:
    """Two shards for training and one for validation."""
    root.mkdir()
    shards = {"train-0": images[:6], "train-1": images[6:12], "validation-0": images[12:]}
    for shard, of_shard in shards.items():
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for i, (_, encoded, name) in enumerate(of_shard):
                files = {".jpg": encoded, ".txt": name.encode()}
                if label == "json":
                    files = {".jpg": encoded, ".json": json.dumps({"label": name}).encode()}
                where = f"{name}/{i}" if label == "folder" else f"{i:04}"
                for suffix, content in files.items():
                    if suffix == ".jpg" or label != "folder":
                        info = tarfile.TarInfo(where + suffix)
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
    return root


def table(images: list[Image], names: bool) -> pa.Table:
    """Binary images and names; or as Hugging Face's datasets: structs, numbers, metadata."""
    encoded, labels = [each for _, each, _ in images], [name for *_, name in images]
    if not names:
        return pa.table({"img": pa.array(encoded, pa.binary()), "label": labels})
    numbers = [CLASSES.index(name) for name in labels]
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    made = pa.table(
        {"image": [{"bytes": each, "path": None} for each in encoded], "label": numbers}
    )
    info = json.dumps({"info": {"features": features}})
    return made.replace_schema_metadata({"huggingface": info})


def parquet(root: Path, images: list[Image], names: bool) -> Path:
    (root / "data").mkdir(parents=True)
    for split, of_split in (("train", images[:12]), ("validation", images[12:])):
        name = f"{split}-00000-of-00001.parquet"
        pq.write_table(table(of_split, names), root / "data" / name, row_group_size=5)
    return root


def saved(root: Path, images: list[Image]) -> Path:
    """As `DatasetDict.save_to_disk` writes it: streams of Arrow, two for training."""
    root.mkdir()
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    for split, parts in (("train", (images[:7], images[7:12])), ("validation", (images[12:],))):
        (root / split).mkdir()
        (root / split / "state.json").write_text("{}")
        for i, part in enumerate(parts):
            made = table(part, names=True)
            file = root / split / f"data-{i:05}-of-{len(parts):05}.arrow"
            with pyarrow.ipc.new_stream(str(file), made.schema) as stream:
                stream.write_table(made, max_chunksize=3)
    return root


FORMS = {
    "folder": folder,
    "CSV": csv_list,
    "tar, labels in .txt": lambda root, images: tar_files(root, images, "txt"),
    "tar, labels in JSON": lambda root, images: tar_files(root, images, "json"),
    "tar, folders": lambda root, images: tar_files(root, images, "folder"),
    "Parquet": lambda root, images: parquet(root, images, names=False),
    "Parquet of Hugging Face": lambda root, images: parquet(root, images, names=True),
    "saved by datasets": saved,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_holds_the_images_with_their_classes(form, images, tmp_path):
    path = str(FORMS[form](tmp_path / "own", images))
    dataset = dataset_info(path)
    ordered = "Hugging Face" in form or "datasets" in form
    assert dataset.label_names == (CLASSES if ordered else tuple(sorted(CLASSES)))
    assert (dataset.train_size, dataset.test_size) == (12, 6)
    for split, wanted in (("train", images[:12]), ("test", images[12:])):
        found = load_split(dataset, split)
        read = [found.read(i) for i in range(len(found))]
        named = {(encoded, dataset.label_names[label]) for encoded, label in read}
        assert named == {(encoded, name) for _, encoded, name in wanted}
        batch = found.eval_images(range(4), lambda height, width: box(height, width), 8)
        assert batch["image"].shape == (4, 8, 8, 3) and batch["mask"].all()
    report = check_images(path, 0.2)
    assert report.undecodable == {} and report.modes == {"RGB": 18}
    copy = load_split(dataset_info(str(FORMS[form](tmp_path / "copy", images))), "test")
    assert copy.fingerprint == found.fingerprint and len(found.fingerprint) == 64


def box(height: int, width: int):
    from deepjax.data.image.crops import centre_box

    return centre_box(height, width, size=8, crop_ratio=0.875)


def test_a_pattern_names_several_shards(images, tmp_path):
    root = tar_files(tmp_path / "own", images, "txt")
    dataset = dataset_info(str(root / "train-{0..1}.tar"))
    assert dataset.train_size + dataset.test_size == 12
    with pytest.raises(InputError, match=r"train-2\.tar does not exist"):
        open_index(str(root / "train-{0..2}.tar"))


def test_a_pattern_of_folders(images, tmp_path):
    for number, part in enumerate((images[:12], images[12:])):
        (tmp_path / f"d{number}").mkdir()
        pq.write_table(table(part, names=True), tmp_path / f"d{number}" / "a.parquet")
    dataset = dataset_info(str(tmp_path / "d{0..1}" / "a.parquet"))
    assert dataset.train_size + dataset.test_size == 18


@pytest.mark.parametrize("style", ["one", "keras", "medmnist"])
def test_arrays_are_read_as_they_are(style, tmp_path):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(256, size=(n, 16, 16, 3), dtype=np.uint8) for n in (40, 10))
    y_train, y_test = np.arange(40) % 4, np.arange(10) % 4
    file = tmp_path / "own.npz"
    if style == "one":
        np.savez(file, images=train[..., 0], labels=y_train)
    elif style == "keras":
        np.savez(file, x_train=train, y_train=y_train[:, None], x_test=test, y_test=y_test)
    else:
        given = {"val_images": test, "val_labels": y_test}
        given |= {"test_images": test[:3], "test_labels": y_test[:3]}
        np.savez_compressed(file, train_images=train, train_labels=y_train, **given)
    dataset = dataset_info(str(file))
    assert dataset.label_names == ("0", "1", "2", "3") and not dataset.encoded
    assert dataset.shape == ((16, 16, 1) if style == "one" else (16, 16, 3)) and dataset.crop == 2
    images, labels = (train[..., :1], y_train) if style == "one" else (train, y_train)
    rows = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for split, size in (("train", dataset.train_size), ("test", dataset.test_size)):
        found = load_split(dataset, split)
        assert isinstance(found, Split) and len(found) == size
        if split == "train":
            for image, label in zip(found.images, found.labels, strict=True):
                assert rows[image.tobytes()] == label
            np.testing.assert_allclose(dataset.mean, found.images.mean((0, 1, 2)))
    assert check_images(str(file), 0.2).formats == {"PNG": 40 if style == "one" else 50}


def refused(kind: str, root: Path, images: list[Image]) -> Path:
    """A path of a kind that is refused."""
    file = root / "own.npz"
    if kind == "pickled":
        np.savez(file, images=np.array([{}], object), labels=np.zeros(1, int))
    elif kind == "floats":
        np.savez(file, images=np.zeros((2, 8, 8, 3), np.float32), labels=np.arange(2))
    elif kind == "five channels":
        np.savez(file, images=np.zeros((2, 8, 8, 5), np.uint8), labels=np.arange(2))
    elif kind == "no labels":
        np.savez(file, images=np.zeros((2, 8, 8, 3), np.uint8))
    elif kind == "half a split":
        arrays = {"images": np.zeros((2, 8, 8, 3), np.uint8), "labels": np.arange(2)}
        np.savez(file, **arrays, x_test=arrays["images"])
    elif kind == "compressed":
        file = root / "own.tar"
        with tarfile.open(file, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("a/1.jpg"))
    elif kind == "unlabelled":
        file = root / "own.tar"
        with tarfile.open(file, "w") as archive:
            archive.addfile(tarfile.TarInfo("1.jpg"))
    elif kind == "no column":
        file = root / "own.parquet"
        pq.write_table(table(images, names=False).drop_columns(["label"]), file)
    elif kind == "no parquet":
        file = root / "own.parquet"
        file.write_bytes(b"text")
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickled", "cannot be read as .npz"),
        (
            "floats",
            r"images float32 \(2, 8, 8, 3\) and labels int64 \(2,\); allowed: images, uint8",
        ),
        ("five channels", r"images uint8 \(2, 8, 8, 5\) and .*; allowed: .*width, 1, 3 or 4\)"),
        ("no labels", r"has the arrays images \(2, 8, 8, 3\); allowed"),
        ("half a split", "has no labels of split 'test'; allowed: images"),
        ("compressed", "cannot be read as tar .*; allowed: without compression"),
        ("unlabelled", r"has '1\.jpg' without a label; allowed: a file of the same name"),
        ("no column", "has the columns img; allowed: a column of encoded images"),
        ("no parquet", r"own\.parquet cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_one_line(kind, message, images, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        dataset_info(str(refused(kind, tmp_path, images)))
    assert "\n" not in str(error.value)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def labels_of(path: Path) -> dict[str, str]:
    index = open_index(str(path))
    train = index.splits["train"]
    return {
        train.name(i).partition("/")[2]: index.label_names[train.labels[i]]
        for i in range(len(train))
    }


def test_names_with_dots_and_several_files_of_a_sample(images, tmp_path):
    """The label is that of the first suffix: a caption or metadata do not count next to .cls."""
    encoded = [each for _, each, _ in images]
    dots = {f"{name}/IMG.{i}.jpg": encoded[i] for i, name in enumerate("aabb")}
    assert labels_of(write_tar(tmp_path / "dots.tar", dots)) == {name: name[0] for name in dots}
    several = {}
    for i in range(4):
        several |= {
            f"{i}.cls": b"%d" % (i % 2), f"{i}.jpg": encoded[i], f"{i}.txt": b"a caption",
            f"{i}.json": b'{"width": 3}',
        }  # fmt: skip
    found = labels_of(write_tar(tmp_path / "several.tar", several))
    assert found == {f"{i}.jpg": str(i % 2) for i in range(4)}


@pytest.mark.parametrize("root", ["", "./", "my/photos/"])
def test_folders_in_a_tar_file_mean_what_they_mean_on_disk(root, images, tmp_path):
    """Splits, classes, folders within a class, hidden files, and what all have in common."""
    encoded = [each for _, each, _ in images]
    names = [*(f"train/cat/{i}.jpg" for i in range(3)), "train/cat/holiday/a.jpg"]
    names += [*(f"train/犬/{i}.jpg" for i in range(3)), "val/cat/0.jpg", "val/犬/0.jpg"]
    files = {root + name: encoded[i] for i, name in enumerate(names)}
    files |= {f"{root}.git/x.jpg": b"x", f"{root}train/cat/._0.webp": b"x"}
    index = open_index(str(write_tar(tmp_path / "own.tar", files)))
    folder_of = tmp_path / "own"
    for name, content in files.items():
        (folder_of / name).parent.mkdir(parents=True, exist_ok=True)
        (folder_of / name).write_bytes(content)
    same = open_index(str(folder_of / root))
    assert index.label_names == same.label_names == ("cat", "犬")
    for split, count in (("train", 7), ("test", 2)):
        pairs = [
            {(each.encoded(i), int(each.labels[i])) for i in range(len(each))}
            for each in (index.splits[split], same.splits[split])
        ]
        assert pairs[0] == pairs[1] and len(pairs[0]) == count


def test_the_folders_of_several_tar_files_are_seen_together(images, tmp_path):
    """A shard of one class alone."""
    for i, name in enumerate(("cat", "cat", "犬")):
        write_tar(tmp_path / f"{i}.tar", {f"photos/{name}/{i}.jpg": images[i][1]})
    assert open_index(str(tmp_path)).label_names == ("cat", "犬")


def test_a_tar_file_of_tests_alone(images, tmp_path):
    root = tar_files(tmp_path / "own", images, "txt")
    dataset = dataset_info(str(root / "validation-0.tar"))
    assert (dataset.train_size, dataset.test_size) == (0, 6)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("two images", "has two images of one sample"),
        ("no label", "a/0.json, which holds no label; allowed: a number or a name"),
        ("a list", "a/0.json, which holds no label; allowed: a number or a name"),
        ("two splits", "has 'val/a/9.jpg', in a folder of another split; name them alike"),
        ("webp", r"0\.webp, which is neither JPEG nor PNG; convert it"),
        ("link", "a link or a sparse file; store its bytes"),
        ("cut between members", "is cut or damaged after byte"),
        ("damaged header", "is cut or damaged after byte"),
    ],
)
def test_tar_files_that_would_lose_images_are_refused(kind, message, images, tmp_path):
    encoded = images[0][1]
    files = {f"{name}/{i}.jpg": encoded for i, name in enumerate("aabb")}
    files |= {"two images": {"0.jpg": b"x", "0.mask.png": b"x", "0.cls": b"0"},
              "webp": {"a/0.webp": b"x"}, "no label": {"a/0.json": b'{"label": null}'},
              "a list": {"a/0.json": b'{"label": [1]}'}}.get(kind, {})  # fmt: skip
    path = write_tar(tmp_path / "own.tar", files)
    if kind == "two splits":
        path.unlink()
        for name in ("train", "val"):
            write_tar(tmp_path / f"{name}.tar", {f"{name}/{c}/1.jpg": encoded for c in "ab"})
        write_tar(tmp_path / "train-1.tar", {"val/a/9.jpg": encoded})
        path = tmp_path
    if kind == "link":
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo("a/link.jpg")
            info.type, info.linkname = tarfile.SYMTYPE, "a/0.jpg"
            archive.addfile(info)
    data = b"" if path.is_dir() else path.read_bytes()
    third = 2 * (512 + -(-len(encoded) // 512) * 512)
    if kind == "cut between members":
        path.write_bytes(data[:third])
    elif kind == "damaged header":
        path.write_bytes(data[:third] + b"?" * 512 + data[third + 512 :])
    with pytest.raises(InputError, match=message):
        open_index(str(path))


def test_parquet_in_folders_of_splits_and_files_without_a_split(images, tmp_path):
    for split, part in (("train", images[:12]), ("test", images[12:])):
        (tmp_path / "own" / split).mkdir(parents=True)
        pq.write_table(table(part, names=True), tmp_path / "own" / split / "0000.parquet")
    dataset = dataset_info(str(tmp_path / "own"))
    assert (dataset.train_size, dataset.test_size) == (12, 6)
    pq.write_table(table(images[:3], names=True), tmp_path / "own" / "extra.parquet")
    with pytest.raises(InputError, match=r"extra\.parquet, whose name has no split in it"):
        open_index(str(tmp_path / "own"))


def test_the_cache_of_a_saved_data_set_is_no_data(images, tmp_path):
    root = saved(tmp_path / "own", images)
    (root / "train" / "cache-1234.arrow").write_bytes(
        (root / "train" / "data-00000-of-00002.arrow").read_bytes()
    )
    assert dataset_info(str(root)).train_size == 12


def test_a_label_outside_of_the_classes_is_named_by_its_row(images, tmp_path):
    made = table(images[:6], names=True)
    labels = pa.array([0, 1, -1, 2, 1, 0])
    made = made.set_column(made.column_names.index("label"), "label", labels)
    pq.write_table(made, tmp_path / "own.parquet")
    with pytest.raises(InputError, match=r"row 2: label is -1; allowed: 0 to 2"):
        open_index(str(tmp_path / "own.parquet"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "other names",
            r"1\.parquet has the names of classes cat, zebra, 犬; 0\.parquet has zebra",
        ),
        ("no names", r"1\.parquet has the names of classes none; 0\.parquet has zebra, cat, 犬"),
        ("a text", "has the class 'dog'; allowed: its classes by name, zebra, cat, 犬"),
    ],
)
def test_parquet_files_of_other_classes_are_refused(kind, message, images, tmp_path):
    pq.write_table(table(images[:6], names=True), tmp_path / "0.parquet")
    other = table(images[6:], names=kind != "no names")
    if kind == "other names":
        text = other.schema.metadata[b"huggingface"].decode()
        names = [json.dumps(each)[1:-1] for each in (CLASSES, sorted(CLASSES))]
        other = other.replace_schema_metadata({"huggingface": text.replace(*names)})
    elif kind == "a text":
        labels = pa.array(["dog"] * len(other))
        other = other.set_column(other.column_names.index("label"), "label", labels)
    pq.write_table(other, tmp_path / "1.parquet")
    with pytest.raises(InputError, match=message):
        open_index(str(tmp_path))


def test_a_tar_file_that_was_cut_is_named(images, tmp_path):
    root = tar_files(tmp_path / "own", images, "txt")
    split = load_split(dataset_info(str(root)), "train")
    shard = root / "train-1.tar"
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(InputError, match=r"train-1\.tar ends before 000\d\.jpg; copy it again"):
        for i in range(len(split)):
            split.read(i)
