"""Rewriting a data set shard by shard.

It resumes after an interruption, and a shard is never partial.
"""

import fcntl
import itertools
import json
import shutil
import time
from pathlib import Path

import pytest

from deepjax.data import load_split, threads
from deepjax.data.prepare import rewrite
from deepjax.data.prepare.prepare import write_resized_copy
from deepjax.data.prepare.tf_example import image_of, parse_example
from deepjax.data.shards import list_splits, read_records
from deepjax.data.threads import thread_map
from deepjax.errors import InputError
from tests.data.archives import small_files, small_imagenet, write_prepared

ORIGIN = {"side": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("source"), small_files(20, 5))


def records_of(folder: Path) -> dict[str, list[bytes]]:
    return {
        split: [r for shard in shards for r in read_records(shard.path)]
        for split, shards in list_splits(folder).items()
    }


def same(record: bytes) -> bytes:
    return record


def test_every_record_and_the_metadata_is_written(source, tmp_path):
    target = tmp_path / "imagenet2012" / "5.1.0"
    rewrite.rewrite_dataset(source, target, read_records, lambda record: record + b"!", ORIGIN)
    assert records_of(target) == {
        split: [r + b"!" for r in records] for split, records in records_of(source).items()
    }
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}
    assert [path.name for path in target.parent.iterdir()] == ["5.1.0"]


@pytest.mark.parametrize("stop", [0, 1, 3, 8, 17, 24])
def test_interrupted_at_any_record_it_carries_on(source, tmp_path, monkeypatch, stop):
    """What was finished is not read again, and the result is that of one go."""
    monkeypatch.setattr(threads, "cpu_count", lambda: 1)
    target, seen = tmp_path / "5.1.0", itertools.count()

    def stops(record: bytes) -> bytes:
        if next(seen) >= stop:
            raise KeyboardInterrupt
        return record

    with pytest.raises(KeyboardInterrupt):
        rewrite.rewrite_dataset(source, target, read_records, stops, ORIGIN)
    assert not target.exists()
    finished = [path.name for path in (tmp_path / "unfinished.5.1.0").glob("*-of-00003")]
    read = []
    rewrite.rewrite_dataset(
        source, target, lambda path: read.append(path.name) or read_records(path), same, ORIGIN
    )
    assert sorted(read + finished) == sorted(path.name for path in source.glob("*record-*"))
    assert records_of(target) == records_of(source) and not list(target.glob("*.partial"))


def test_interrupted_before_it_has_its_name_it_still_knows_its_origin(
    source, tmp_path, monkeypatch
):
    target, origin = tmp_path / "5.1.0", tmp_path / "unfinished.5.1.0" / "origin.json"
    with monkeypatch.context() as patch:
        patch.setattr(
            rewrite,
            "write_metadata",
            lambda *_: patch.setattr(Path, "rename", lambda *_: 1 / 0),
        )
        with pytest.raises(ZeroDivisionError):
            rewrite.rewrite_dataset(source, target, read_records, same, ORIGIN)
    assert origin.read_text() and not target.exists()
    rewrite.rewrite_dataset(source, target, read_records, same, ORIGIN)
    assert records_of(target) == records_of(source) and not (target / "origin.json").exists()


def test_begun_from_something_else_it_is_refused(source, tmp_path):
    other = Path(shutil.copytree(source, tmp_path / "other"))
    (other / "features.json").write_text("{}\n")
    for origin, where in ((ORIGIN, source), ({"side": 2}, source), (ORIGIN, other)):
        work = tmp_path / "unfinished.5.1.0"
        if origin is ORIGIN and where is source:
            with pytest.raises(ZeroDivisionError):
                rewrite.rewrite_dataset(
                    where, tmp_path / "5.1.0", read_records, lambda _: 1 / 0, origin
                )  # pyright: ignore
        else:
            with pytest.raises(
                InputError,
                match=rf"begun from other data or for another size; to begin anew: rm -r {work}",
            ):
                rewrite.rewrite_dataset(where, tmp_path / "5.1.0", read_records, same, origin)


def test_two_at_once_are_refused(source, tmp_path):
    work = tmp_path / "unfinished.5.1.0"
    work.mkdir()
    with (work / "origin.json").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing"):
            rewrite.rewrite_dataset(source, tmp_path / "5.1.0", read_records, same, ORIGIN)


def test_a_disk_that_keeps_something_else_is_noticed(source, tmp_path, monkeypatch):
    """Each shard is read back before it takes its name."""
    write = rewrite.write_records
    monkeypatch.setattr(
        rewrite,
        "write_records",
        lambda path, records: write(path, (record[:-1] + b"?" for record in records)),
    )
    with pytest.raises(InputError, match="does not hold what was written to it"):
        rewrite.rewrite_dataset(source, tmp_path / "5.1.0", read_records, same, ORIGIN)
    assert not list((tmp_path / "unfinished.5.1.0").glob("*-of-00003"))


def test_a_resized_copy_is_read_as_the_original(tmp_path):
    """By the same name, from the folder that is returned.

    Same labels and order, shorter side <= 64.
    """
    import io

    from PIL import Image

    dataset = small_imagenet(tmp_path, train=20, validation=5, damaged=True)
    small_dir = write_resized_copy(dataset.name, 64, str(tmp_path))
    assert small_dir == tmp_path / "resized_64"
    for split in ("train", "test"):
        before, after = (
            load_split(dataset, split, str(folder)) for folder in (tmp_path, small_dir)
        )
        pairs = [(before.read(i), after.read(i)) for i in range(len(before))]  # pyright: ignore
        assert all(a[1] == b[1] for a, b in pairs)
        opened = [Image.open(io.BytesIO(b[0])) for a, b in pairs if a[0] != b[0]]
        assert len(opened) >= 3 and all(min(image.size) == 64 for image in opened)
    content = json.loads((small_dir / "imagenet2012" / "5.1.0" / "fingerprint.json").read_text())
    assert len(content["damaged"]) == 2  # they are as they were
    again = records_of(small_dir / "imagenet2012" / "5.1.0")
    assert (
        write_resized_copy(dataset.name, 64, str(tmp_path)) == small_dir
        and records_of(small_dir / "imagenet2012" / "5.1.0") == again
    )
    assert all(image_of(parse_example(record)) is not None for record in again["train"])


@pytest.mark.parametrize(
    ("name", "side", "said"),
    [
        ("imagenet2012", 8, "resized is 8; allowed: 16 to 1024"),
        ("fashion_mnist", 32, "resized is 32; allowed: a data set of photographs"),
        ("imagenet2012", 256, "is not prepared"),
    ],
)
def test_what_cannot_be_resized(name, side, said, tmp_path):
    with pytest.raises(InputError, match=said):
        write_resized_copy(name, side, str(tmp_path))


def test_the_first_error_of_a_thread_ends_the_pass(monkeypatch):
    monkeypatch.setattr(threads, "cpu_count", lambda: 1)
    seen = []

    def fails(item: int) -> int:
        seen.append(item)
        if item == 3:
            raise InputError("three")
        # a thread that does nothing would be through before anyone hears of it
        time.sleep(0.001 if item > 3 else 0)
        return -item

    with pytest.raises(InputError, match="three"):
        thread_map(fails, range(1000))
    assert len(seen) < 1000 and thread_map(lambda item: -item, range(5)) == [0, -1, -2, -3, -4]
