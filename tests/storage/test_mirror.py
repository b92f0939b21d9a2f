"""The files of a run directory in a bucket: what a reader finds at any moment."""

import contextlib
import time

import pytest

from deepjax.storage import mirror
from deepjax.storage.bucket import Bucket, BucketError
from deepjax.storage.mirror import Mirror, fetch_files, read_grown


def opened(store, name, folder, owner=1, patience=60):
    folder.mkdir(exist_ok=True)
    return Mirror(Bucket(store.url(name), patience), folder, owner, print)


def fetched(store, name, folder):
    folder.mkdir(exist_ok=True)
    fetch_files(Bucket(store.url(name)), folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_files_are_written_as_they_change_and_logs_in_parts(store, tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    writer = opened(store, "files", run)
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text("1\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "x").write_text("not a file of this module")
    (run / "run.lock").write_text("nor this")
    writer.push()
    assert fetched(store, "files", copy) == {"config.json": "{}", "metrics.jsonl": "1\n"}
    with (run / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    store.requests.clear()
    writer.push()
    written = [path for method, path in store.requests if method in ("PUT", "POST")]
    assert len(written) == 1  # the part alone
    assert fetched(store, "files", copy)["metrics.jsonl"] == "1\n2\n"
    (run / "metrics.jsonl").write_text("1\n3\n")  # rows were dropped
    (run / "config.json").write_text('{"a": 1}')
    writer.push()
    expected = {"config.json": '{"a": 1}', "metrics.jsonl": "1\n3\n"}
    assert fetched(store, "files", copy) == expected
    writer.close()
    assert [name for name in Bucket(store.url("files")).sizes()] == sorted(expected)
    assert fetched(store, "files", copy) == expected


def test_an_unchanged_file_is_not_written_again(store, tmp_path):
    writer = opened(store, "unchanged", tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")
    writer.push()
    store.requests.clear()
    writer.push()
    assert store.requests == []


def test_a_next_owner_goes_on_and_what_the_first_writes_late_is_not_read(store, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first = opened(store, "owners", one, owner=1)
    (one / "metrics.jsonl").write_text("1\n2\n")
    first.push()
    assert fetched(store, "owners", two) == {"metrics.jsonl": "1\n2\n"}
    second = opened(store, "owners", two, owner=2)
    (two / "metrics.jsonl").write_text("1\n")
    second.push()
    with (one / "metrics.jsonl").open("a") as file:
        file.write("late\n")
    first.push()
    with (two / "metrics.jsonl").open("a") as file:
        file.write("2 again\n")
    second.push()
    assert read_grown(Bucket(store.url("owners")), "metrics.jsonl") == b"1\n2 again\n"


def test_many_parts_become_one(store, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "MOST_PARTS", 3)
    writer = opened(store, "many", tmp_path / "run")
    text = ""
    for number in range(8):
        text += f"{number}\n"
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write(f"{number}\n")
        writer.push()
        assert read_grown(Bucket(store.url("many")), "metrics.jsonl").decode() == text
    assert len(Bucket(store.url("many")).sizes()) <= 3


@pytest.mark.parametrize("after", range(9))
def test_a_close_that_is_killed_between_two_requests_loses_nothing(store, tmp_path, after):
    name = f"killed {after}"
    writer = opened(store, name, tmp_path / "run", patience=0.05)
    log = tmp_path / "run" / "metrics.jsonl"
    for text in ("1\n", "1\n2\n", "1\n2\n3\n"):
        log.write_text(text)
        writer.push()
    writes = []

    def killed(method, path):
        if method not in ("GET", "HEAD"):
            writes.append(method)
        return "drop" if len(writes) > after else ""

    store.fault = killed
    with contextlib.suppress(BucketError):
        writer.close()
    store.fault = lambda method, path: ""
    assert fetched(store, name, tmp_path / "copy") == {"metrics.jsonl": "1\n2\n3\n"}


def test_a_failure_in_the_background_is_said_once_and_made_good(store, tmp_path):
    said = []
    folder = tmp_path / "run"
    folder.mkdir()
    writer = Mirror(Bucket(store.url("background"), patience=0.05), folder, 1, said.append)
    store.fault = lambda method, path: "503"
    (folder / "config.json").write_text("{}")
    writer.start(seconds=0.05)
    while len(store.requests) < 20:
        time.sleep(0.01)
    store.fault = lambda method, path: ""
    while "config.json" not in Bucket(store.url("background")).sizes():
        time.sleep(0.01)
    writer.close()
    assert len(said) == 1
    assert "tried again later, training continues" in said[0]
