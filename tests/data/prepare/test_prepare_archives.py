"""Preparation from archives by tfds's builders: needs TensorFlow (`make prepare-env`)."""

import dataclasses
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from deepjax.data import Dataset, catalog, dataset_info, load_split, register, threads
from deepjax.data.embedded import EMBEDDED
from deepjax.data.fashion_mnist_small import builder
from deepjax.data.prepare import tfrecord
from deepjax.data.prepare.prepare import prepare_dataset
from deepjax.data.prepare.small import READERS
from deepjax.data.prepare.tf_example import image_of, parse_example
from deepjax.data.shards import list_splits, read_records
from deepjax.errors import InputError
from tests.data.archives import (
    DAMAGED,
    LABELS,
    Files,
    lines,
    small_files,
    write_archive,
    write_archives,
    write_prepared,
)
from tests.data.fashion_mnist import ARCHIVES, needs_archives
from tests.data.photographs import jpeg, photograph, variants
from tests.data.prepare.small_archives import write_small_archives

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is None
        and os.environ.get("DEEPJAX_REQUIRE_TENSORFLOW") != "1",
        reason="TensorFlow is not installed (make prepare-env)",
    ),
    pytest.mark.filterwarnings("default"),
]
PICTURE = jpeg(photograph()[:60, :80])


@pytest.fixture(autouse=True)
def _forgets(monkeypatch):
    monkeypatch.setattr(catalog, "CATALOG", dict(catalog.CATALOG))


def known_as(name: str, builder: str, train: int, test: int) -> Dataset:
    known = dataset_info(builder)
    return register(
        dataclasses.replace(known, name=name, train_size=train, test_size=test, source="tests")
    )


@pytest.fixture(scope="module")
def files() -> Files:
    return small_files(40, 12, damaged=True)


@pytest.fixture(scope="module")
def archives(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    write_archives(folder, files)
    return folder


@needs_archives
def test_the_builder_writes_the_embedded_subset_of_fashion_mnist(tmp_path):
    written = builder.write_data_set(str(ARCHIVES), str(tmp_path))
    embedded = EMBEDDED["fashion_mnist_small"]
    assert {path.name for path in written.iterdir()} == {path.name for path in embedded.iterdir()}
    for name in ("features.json", "label.labels.txt"):
        assert (written / name).read_bytes() == (embedded / name).read_bytes()
    for split, shards in list_splits(written).items():
        [own], [theirs] = shards, list_splits(embedded)[split]
        same = list(read_records(own.path)) == list(read_records(theirs.path))
        assert same, split  # pytest takes minutes to print 16,000 records that differ


def test_tfds_writes_what_the_tests_of_training_read(files, archives, tmp_path, capsys):
    """`write_prepared`, on which other tests rely, equals tfds's builder byte for byte."""
    known_as("small", "imagenet2012", 40, 12)
    folder = prepare_dataset("small", str(tmp_path / "a"), str(archives))
    other = write_prepared(tmp_path / "b", files, shards=1)
    for path in other.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    assert {path.name for path in folder.iterdir()} - {path.name for path in other.iterdir()} == {
        "fingerprint.json"
    }
    said = capsys.readouterr().out
    assert (
        "small train: 40 images, every one read back; 2 cannot be decoded" in said
        and "small test: 12 images" in said
    )
    names = {
        damage["file"]
        for damage in json.loads((folder / "fingerprint.json").read_text())["damaged"]
    }
    assert names == set(list(files.train)[8 : 8 + DAMAGED]) and all(name in said for name in names)


def test_the_odd_images_that_tfds_mends(tmp_path):
    """22 CMYK images and one PNG, by name, as they are in ImageNet.

    Prepared, all are JPEG in RGB.
    """
    odd = {"n02105855_2933.JPEG": variants()["png"], "n01739381_1309.JPEG": variants()["cmyk"]}
    write_archives(
        tmp_path / "in",
        Files(odd, {"ILSVRC2012_val_00000001.JPEG": PICTURE}, {name: name[:9] for name in odd}),
    )
    known_as("odd", "imagenet2012", 2, 1)
    prepare_dataset("odd", str(tmp_path), str(tmp_path / "in"))
    records = load_split(dataset_info("odd"), "train", str(tmp_path)).records  # pyright: ignore
    images = [Image.open(io.BytesIO(record["image"])) for record in records]
    assert [(image.format, image.mode, image.size) for image in images] == [
        ("JPEG", "RGB", (250, 190))
    ] * 2


def test_a_missing_archive_is_named_with_where_it_comes_from(archives, tmp_path):
    with pytest.raises(
        InputError,
        match=r"needs ILSVRC2012_img_train\.tar and ILSVRC2012_img_val\.tar .*image-net\.org",
    ):
        prepare_dataset("imagenet2012", str(tmp_path))
    (tmp_path / "in").mkdir()
    shutil.copy(archives / "ILSVRC2012_img_val.tar", tmp_path / "in")
    with pytest.raises(InputError, match=r"needs ILSVRC2012_img_train\.tar in --manual-dir"):
        prepare_dataset("imagenet2012", str(tmp_path), str(tmp_path / "in"))


def test_a_folder_of_other_archives_is_refused_before_anything_is_downloaded(archives, tmp_path):
    with pytest.raises(
        InputError, match=r"holds none of the archives of 'imagenet_a': imagenet-a\.tar"
    ):
        prepare_dataset("imagenet_a", str(tmp_path), str(archives))


def test_an_archive_that_tfds_does_not_know_is_refused(archives, tmp_path, monkeypatch):
    """Size and sha256 in tfds's checksums.tsv: 147,897,477,120 bytes of training images."""
    with pytest.raises(
        InputError,
        match=r"ILSVRC2012_img_train\.tar has .* bytes, not 147,897,477,120: .* not complete",
    ):
        prepare_dataset("imagenet2012", str(tmp_path), str(archives))
    cls = tfds.builder_cls("imagenet2012")
    sizes = {path.name: path.stat().st_size for path in archives.iterdir()}
    same_size = {
        url: dataclasses.replace(info, size=sizes[url.rsplit("/", 1)[-1]])
        for url, info in cls.url_infos.items()
    }
    monkeypatch.setattr(cls, "url_infos", same_size)
    with pytest.raises(
        InputError,
        match=r"ILSVRC2012_img_train\.tar is not the archive that tfds knows: its sha256",
    ):
        prepare_dataset("imagenet2012", str(tmp_path), str(archives))


def test_a_disk_that_is_too_small_is_reported_first(archives, tmp_path, monkeypatch):
    known_as("small", "imagenet2012", 40, 12)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10**5)
    )  # pyright: ignore
    with pytest.raises(InputError, match=r"has 0\.0 GB free, 'small' needs"):
        prepare_dataset("small", str(tmp_path), str(archives))


def test_an_archive_cut_short_leaves_nothing(archives, tmp_path):
    known_as("small", "imagenet2012", 40, 12)
    shutil.copytree(archives, tmp_path / "in")
    os.truncate(tmp_path / "in" / "ILSVRC2012_img_train.tar", 300_000)
    with pytest.raises(
        InputError,
        match=r"dataset 'small' could not be prepared \(ReadError: unexpected end of data",
    ):
        prepare_dataset("small", str(tmp_path), str(tmp_path / "in"))
    assert list((tmp_path / "imagenet2012").iterdir()) == []


def test_a_wrong_count_is_refused(archives, tmp_path):
    known_as("small", "imagenet2012", 41, 12)
    with pytest.raises(InputError, match="split 'train' holds 40 records, expected 41"):
        prepare_dataset("small", str(tmp_path), str(archives))


KILLED = """
import dataclasses, os, signal, sys
from deepjax.data import dataset_info, register
from deepjax.data.prepare.prepare import prepare_dataset
from tensorflow_datasets.core import writer
imagenet = dataset_info("imagenet2012")
register(dataclasses.replace(imagenet, name="small", train_size=40, test_size=12))
finalize = writer.Writer.finalize
# killed once the first split is written
writer.Writer.finalize = lambda self: (finalize(self), os.kill(os.getpid(), signal.SIGKILL))
prepare_dataset("small", sys.argv[1], sys.argv[2])
"""


def test_what_a_killed_preparation_leaves_is_named(archives, tmp_path):
    """SIGKILL between the splits.

    Tfds's folder stays unread, and the next preparation says what to do.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, archives], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    known_as("small", "imagenet2012", 40, 12)
    with pytest.raises(InputError, match="'small' is not prepared in"):
        load_split(dataset_info("small"), "train", str(tmp_path))
    with pytest.raises(
        InputError, match=r"was interrupted, or is running: .*begin anew after: rm -r (.*)$"
    ) as refused:
        prepare_dataset("small", str(tmp_path), str(archives))
    left = Path(str(refused.value).split("rm -r ")[1])
    assert left.parent == tmp_path / "imagenet2012" and any(left.iterdir())
    shutil.rmtree(left)
    assert prepare_dataset("small", str(tmp_path), str(archives)).name == "5.1.0"


def test_preparing_again_reads_everything_back(archives, tmp_path, capsys):
    known_as("small", "imagenet2012", 40, 12)
    folder = prepare_dataset("small", str(tmp_path), str(archives))
    capsys.readouterr()
    assert (
        prepare_dataset("small", str(tmp_path)) == folder
        and "40 images, every one read back" in capsys.readouterr().out
    )
    shard = list_splits(folder)["train"][0].path
    os.truncate(shard, 1000)
    with pytest.raises(InputError, match=rf"{shard.name} in .* has 1,000 bytes"):
        prepare_dataset("small", str(tmp_path))


# TFRecords.


@pytest.fixture(scope="module")
def records(archives, tmp_path_factory) -> Path:
    """The same data set as tfds writes it by default, in four shards a split."""
    folder = tmp_path_factory.mktemp("tfrecord")
    config = tfds.download.DownloadConfig(manual_dir=archives, num_shards=4)
    tfds.builder("imagenet2012", data_dir=folder).download_and_prepare(download_config=config)
    return folder


@pytest.mark.parametrize("below", [False, True])
def test_tfrecords_are_converted_to_the_byte(records, archives, tmp_path, below):
    """Against TensorFlow's own reading of the source; `prepare` has read the result with tfds."""
    import tensorflow as tf

    known_as("small", "imagenet2012", 40, 12)
    folder = prepare_dataset(
        "small",
        str(tmp_path),
        from_tfrecord=str(records / "imagenet2012" / "5.1.0" if below else records),
    )
    for split, shards in list_splits(records / "imagenet2012" / "5.1.0").items():
        new = list_splits(folder)[split]
        assert [shard.count for shard in new] == [shard.count for shard in shards] and len(new) == 4
        for before, after in zip(shards, new, strict=True):
            assert list(read_records(after.path)) == list(
                tf.data.TFRecordDataset(str(before.path)).as_numpy_iterator()
            )
    assert sorted(path.name for path in folder.iterdir() if "record-" not in path.name) == [
        "dataset_info.json", "features.json", "fingerprint.json", "label.labels.txt",
    ]  # fmt: skip


def test_a_conversion_carries_on_where_it_was_interrupted(records, tmp_path, monkeypatch):
    known_as("small", "imagenet2012", 40, 12)
    read, seen = tfrecord.read_tfrecord, []

    def stops_at_the_third(path):
        seen.append(path.name)
        if path.name.endswith("train.tfrecord-00002-of-00004"):
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(tfrecord, "read_tfrecord", stops_at_the_third)
    monkeypatch.setattr(threads, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("small", str(tmp_path), from_tfrecord=str(records))
    unfinished = tmp_path / "imagenet2012" / "unfinished.5.1.0"
    before = {path.name: path.stat().st_mtime_ns for path in unfinished.glob("*-of-00004")}
    assert 2 <= len(before) < 8 and not (tmp_path / "imagenet2012" / "5.1.0").exists()
    monkeypatch.setattr(
        tfrecord, "read_tfrecord", lambda path: seen.append(path.name) or read(path)
    )
    seen.clear()
    folder = prepare_dataset("small", str(tmp_path), from_tfrecord=str(records))
    assert len(seen) == 8 - len(before) and not unfinished.exists()
    assert all((folder / name).stat().st_mtime_ns == time for name, time in before.items())


def overwrite(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"?")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda shard: shard.unlink(),
            r"shard imagenet2012-train\.tfrecord-00001-of-00004 is missing",
        ),
        (
            lambda shard: os.truncate(shard, 5000),
            r"shard imagenet2012-train\.tfrecord-00001-of-00004 in .* cannot be read",
        ),
        (lambda shard: os.truncate(shard, 0), r"00001-of-00004 in .* holds 0 records, expected 10"),
        (lambda shard: overwrite(shard, 9000), r"00001-of-00004 in .* cannot be read \(corrupted"),
    ],
)
def test_a_damaged_tfrecord_shard_is_named(records, tmp_path, harm, said):
    known_as("small", "imagenet2012", 40, 12)
    source = Path(shutil.copytree(records, tmp_path / "source")) / "imagenet2012" / "5.1.0"
    harm(source / "imagenet2012-train.tfrecord-00001-of-00004")
    with pytest.raises(InputError, match=said):
        prepare_dataset("small", str(tmp_path / "out"), from_tfrecord=str(source))
    assert not (tmp_path / "out" / "imagenet2012" / "5.1.0").exists()


def test_other_tfrecords_are_refused(records, tmp_path):
    with pytest.raises(
        InputError,
        match=r"holds imagenet2012 5\.1\.0 as tfrecord; allowed: imagenette 1\.0\.0 as tfrecord",
    ):
        prepare_dataset(
            "imagenette/160px-v2",
            str(tmp_path),
            from_tfrecord=str(records / "imagenet2012" / "5.1.0"),
        )
    with pytest.raises(InputError, match="is no prepared data set"):
        prepare_dataset("imagenet2012", str(tmp_path), from_tfrecord=str(tmp_path))
    known_as("small", "imagenet2012", 40, 12)
    with pytest.raises(InputError, match=r"the format of .* is 'tfrecord'; allowed: array_record"):
        prepare_dataset("small", str(records), from_tfrecord=str(records))


# The archives that tfds downloads, from manual_dir.


def imagenette(size: str) -> dict[str, bytes]:
    top = {"160px": "imagenette2-160", "320px": "imagenette2-320", "full-size": "imagenette2"}[size]
    synsets = lines("image_classification/imagenette_labels.txt")
    return {
        f"{top}/{split}/{s}/{s}_{i}.JPEG": PICTURE
        for split, n in (("train", 2), ("val", 1))
        for s in synsets
        for i in range(n)
    }


def renditions(top: str) -> dict[str, bytes]:
    return {f"{top}/README.txt": b"x"} | {
        f"{top}/{s}/{s}_{i}.jpg": PICTURE for s in lines(LABELS)[1:5] for i in range(2)
    }


OTHERS = {
    "imagenette/160px-v2": ("imagenette2-160.tgz", imagenette("160px"), 20, 10),
    "imagenette/320px-v2": ("imagenette2-320.tgz", imagenette("320px"), 20, 10),
    "imagenette/full-size-v2": ("imagenette2.tgz", imagenette("full-size"), 20, 10),
    "imagenet_a": ("imagenet-a.tar", renditions("imagenet-a"), 0, 8),
    "imagenet_r": ("imagenet-r.tar", renditions("imagenet-r"), 0, 8),
    "imagenet_v2": (
        "imagenetv2-matched-frequency.tar.gz",
        {
            f"imagenetv2-matched-frequency-format-val/{label}/{i}.jpeg": PICTURE
            for label in (0, 7, 999)
            for i in range(2)
        },
        0,
        6,
    ),
    "imagenet2012_real": ("real.json", {}, 0, 12),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_sets_from_the_archives_that_tfds_downloads(
    name, archives, tmp_path, monkeypatch
):
    """Their sha256 is checked: tfds's own refuses these, until the tests' own is registered."""
    archive, members, train, test = OTHERS[name]
    path = tmp_path / "in" / archive
    if members:
        write_archive(path, members)
    else:
        path.parent.mkdir()
        shutil.copy(archives / "ILSVRC2012_img_val.tar", path.parent)
        path.write_text(json.dumps([[i, 3] if i % 3 else [] for i in range(12)]))
    known = known_as(f"own_{archive}", name, train, test)
    with pytest.raises(InputError, match=r"could not be prepared \(NonMatchingChecksumError"):
        prepare_dataset(known.name, str(tmp_path), str(path.parent))
    register_checksum(name, path, monkeypatch)
    prepare_dataset(known.name, str(tmp_path), str(path.parent))
    split = load_split(known, "test", str(tmp_path))
    assert [split.read(i)[0] for i in range(len(split))] == [PICTURE] * test or not members  # pyright: ignore


def register_checksum(name: str, path: Path, monkeypatch) -> None:
    cls = tfds.builder_cls(name.split("/")[0])
    info = tfds.core.download.checksums.compute_url_info(path)
    infos = {
        url: info if known.filename == path.name else known for url, known in cls.url_infos.items()
    }
    monkeypatch.setattr(cls, "url_infos", infos)


@needs_archives
def test_fashion_mnist_is_what_tfds_prepares(tmp_path):
    """Every record, in the same order; PNGs are packed otherwise."""
    own = prepare_dataset("fashion_mnist", str(tmp_path / "own"), str(ARCHIVES))
    made = tfds.builder("fashion_mnist", data_dir=tmp_path / "tfds", file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=str(ARCHIVES))
    made.download_and_prepare(download_config=config)
    theirs = Path(made.data_path)
    for name in ("features.json", "label.labels.txt"):
        assert (own / name).read_bytes() == (theirs / name).read_bytes()
    for split, shards in list_splits(theirs).items():
        [mine], [other] = list_splits(own)[split], shards
        assert mine.count == other.count
        pairs = zip(read_records(mine.path), read_records(other.path), strict=True)
        assert all(contents(one) == contents(two) for one, two in pairs), split


def contents(record: bytes):
    """Pixels and label of a record."""
    example = parse_example(record)
    pixels = Image.open(io.BytesIO(image_of(example))).tobytes()
    return pixels, example.features.feature["label"].int64_list.value[0]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn_cropped"])
def test_small_archives_are_read_as_tfds_reads_them(name, tmp_path):
    """Keys, labels, ids and pixels of tfds's own generators."""
    archives = write_small_archives(tmp_path / "archives", name)
    builder = tfds.builder(name, data_dir=tmp_path / "data")
    read, _ = READERS[name]
    for split in ("train", "test"):
        if name == "svhn_cropped":
            theirs = builder._generate_examples(f"{split}_", archives / f"{split}_32x32.mat")
        else:
            shutil.unpack_archive(next(archives.iterdir()), tmp_path / "unpacked")
            info = builder._cifar_info
            files = info.train_files if split == "train" else info.test_files
            paths = [str(tmp_path / "unpacked" / info.prefix / file) for file in files]
            theirs = builder._generate_examples(f"{split}_", paths)
        _, mine = read(archives, split)
        for (key, wanted), (i, found) in zip(theirs, enumerate(mine), strict=True):
            assert key == i and set(wanted) == set(found)
            np.testing.assert_array_equal(np.asarray(Image.open(found["image"])), wanted["image"])
            assert all(found[each] == wanted[each] for each in wanted if each != "image")
