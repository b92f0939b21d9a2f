"""A data set that differs from what was prepared is refused in one line that names the file."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from deepjax.data import fingerprint
from deepjax.data.fingerprint import (
    FINGERPRINT_FILE,
    UndecodableImage,
    check_fingerprint,
    write_fingerprint,
)
from deepjax.data.shards import list_splits, read_records
from deepjax.errors import InputError
from tests.data.archives import small_files, write_prepared

SHARD = "imagenet2012-train.array_record-00001-of-00003"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = write_prepared(tmp_path_factory.mktemp("data"), small_files(20, 5))
    write_fingerprint(folder)
    return folder


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "5.1.0"))


def overwrite(path: Path, place: int, data: bytes = b"?") -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def test_it_names_what_was_prepared(folder):
    """The digest is the same wherever the data set lies, and every small file's is its sha256."""
    content = json.loads((folder / FINGERPRINT_FILE).read_text())
    assert (content["name"], content["version"]) == ("imagenet2012", "5.1.0")
    assert content["records"] == {"train": 20, "validation": 5}
    names = [path.name for path in folder.iterdir() if path.name != FINGERPRINT_FILE]
    assert {
        name: [
            (folder / name).stat().st_size,
            hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        ]
        for name in names
    } == (content["files"])
    assert check_fingerprint(folder) == content["sha256"] == write_fingerprint(folder)


def test_a_data_set_without_one_is_accepted(folder):
    (folder / FINGERPRINT_FILE).unlink()
    assert check_fingerprint(folder) == ""


@pytest.mark.parametrize("name", [SHARD, "dataset_info.json", "features.json", "label.labels.txt"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_an_edited_file_is_named(folder, name, place):
    overwrite(folder / name, int(place * ((folder / name).stat().st_size - 1)))
    with pytest.raises(
        InputError,
        match=rf"^{name} in .* is not what was prepared: its sha256 is another; delete that folder",
    ):
        check_fingerprint(folder)


def test_strays_are_no_part_of_it(folder):
    before = check_fingerprint(folder)
    (folder / "origin.json").write_text("{}"), (folder / ".nfs01").write_text("")
    assert write_fingerprint(folder) == before


def test_of_very_many_files_each_has_a_block(folder, monkeypatch):
    """Otherwise less than a byte of each would be hashed, which `check_fingerprint` refuses."""
    monkeypatch.setattr(fingerprint, "MAX_HASHED_BYTES", 3)
    write_fingerprint(folder)
    assert check_fingerprint(folder)


def test_a_missing_shard_is_named(folder):
    (folder / SHARD).unlink()
    with pytest.raises(InputError, match=rf"^{SHARD} is missing in"):
        check_fingerprint(folder)
    with pytest.raises(InputError, match=rf"^shard {SHARD} is missing in"):
        write_fingerprint(folder)


def test_a_truncated_shard_is_named(folder):
    size = (folder / SHARD).stat().st_size
    os.truncate(folder / SHARD, size - 1)
    with pytest.raises(InputError, match=rf"^{SHARD} in .* has {size - 1:,} bytes, not {size:,};"):
        check_fingerprint(folder)


def test_shards_that_changed_places_are_noticed(folder):
    a, b = folder / SHARD, folder / SHARD.replace("00001-of", "00002-of")
    a.rename(folder / "x"), b.rename(a), (folder / "x").rename(b)
    with pytest.raises(InputError, match=r"imagenet2012-train\.array_record-0000[12]-of-00003"):
        check_fingerprint(folder)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"sha256": "0", "files": {}, "hashed_bytes_of_a_file": 1}'],
)
def test_a_damaged_fingerprint_is_refused(folder, text):
    (folder / FINGERPRINT_FILE).write_text(text)
    with pytest.raises(InputError, match=r"fingerprint\.json is corrupt or was edited"):
        check_fingerprint(folder)


def test_an_edited_count_of_records_is_refused(folder):
    (folder / FINGERPRINT_FILE).write_text(
        (folder / FINGERPRINT_FILE).read_text().replace('"train": 20', '"train": 21')
    )
    with pytest.raises(InputError, match=r"fingerprint\.json is corrupt or was edited"):
        check_fingerprint(folder)


def test_none_is_half_written(folder, monkeypatch):
    """A kill before the rename leaves what was there before."""
    before = (folder / FINGERPRINT_FILE).read_text()
    monkeypatch.setattr(Path, "rename", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_fingerprint(folder, [UndecodableImage("train", 0, "", "")])
    monkeypatch.undo()
    assert (folder / FINGERPRINT_FILE).read_text() == before and check_fingerprint(
        folder
    ) == write_fingerprint(folder)


def test_damaged_images_are_kept(folder):
    found = [UndecodableImage("train", 3, "n1_1.JPEG", "truncated")]
    write_fingerprint(folder, found)
    assert json.loads((folder / FINGERPRINT_FILE).read_text())["damaged"] == [
        dataclasses.asdict(found[0])
    ] and check_fingerprint(folder)


def test_of_a_large_data_set_blocks_are_hashed(folder, monkeypatch):
    """Four blocks of 64 KiB, evenly spread over the file; a change between them is not detected."""
    for i in range(3):
        (folder / SHARD.replace("00001-of", f"0000{i}-of")).write_bytes(bytes(2**20))
    monkeypatch.setattr(
        fingerprint, "MAX_HASHED_BYTES", 4 * 2**16 * (len(list(folder.iterdir())) - 1)
    )
    write_fingerprint(folder)
    assert check_fingerprint(folder)
    apart = (2**20 - 2**16) // 3
    places = {0: True, 2**20 - 1: True, apart + 5: True, apart - 1: False, 2 * apart + 2**16: False}
    for place, seen in places.items():
        overwrite(folder / SHARD, place)
        if seen:
            with pytest.raises(InputError, match=SHARD):
                check_fingerprint(folder)
        else:
            assert check_fingerprint(folder)
        overwrite(folder / SHARD, place, b"\0")


def test_shards_and_records_as_tfds_reads_them(folder):
    """The reference is tfds's own data source; metadata that is none is named."""
    import tensorflow_datasets as tfds

    for split, shards in list_splits(folder).items():
        source = tfds.builder_from_directory(folder).as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = [record for shard in shards for record in read_records(shard.path)]
        assert records == list(source) and [shard.count for shard in shards] == [
            len(list(read_records(shard.path))) for shard in shards
        ]
    (folder / "dataset_info.json").write_text('{"name": "a", "version": "1", "splits": 3}')
    with pytest.raises(InputError, match="lists no splits"):
        list_splits(folder)


@pytest.mark.parametrize("damage", ["missing", "truncated", "no shard"])
def test_a_shard_that_cannot_be_read_is_named(folder, damage):
    if damage == "missing":
        (folder / SHARD).unlink()
    elif damage == "truncated":
        os.truncate(folder / SHARD, 1000)
    else:
        (folder / SHARD).write_bytes(b"no records " * 10_000)
    with pytest.raises(InputError, match=rf"shard {SHARD} in .* cannot be read"):
        list(read_records(folder / SHARD))
