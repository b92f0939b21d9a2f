"""metrics.jsonl survives kills and resumes; the display tells rate and time left in words."""

import errno
import json
from pathlib import Path

import pytest

from deepjax.errors import InputError
from deepjax.training.metrics.metrics_log import MetricsLog, read_rows


def row(step: int) -> dict:
    return {"kind": "epoch", "step": step, "loss": 0.1 * step}


def test_rows_come_back_as_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        log.write(row(step))
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [row(1), row(2), row(3)]
    assert read_rows(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_reopened_at_a_step_it_forgets_what_lies_beyond(tmp_path, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row(step)) + "\n" for step in (1, 2, 3)))
    log = MetricsLog(path, kept)
    log.write(row(9))
    log.close()
    assert [r["step"] for r in read_rows(path)] == [*range(1, kept + 1), 9]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_cut_short_by_a_kill_is_left_out(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    text = json.dumps(row(1)) + "\n" + json.dumps(row(2))
    path.write_text(text[: len(text) - cut])
    assert read_rows(path) == [row(1)]


@pytest.mark.parametrize(
    "line",
    [b"{oops", b"[1]", b"3", b'{"kind": "epoch"}', b'{"kind": 1, "step": 2}', b'{"kind": "\xff"}'],
)
def test_a_damaged_line_in_the_midst_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b"\n".join([json.dumps(row(1)).encode(), line, json.dumps(row(3)).encode()]) + b"\n"
    )
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2 is corrupt"):
        read_rows(path)


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl", 0)


@pytest.fixture
def full_disk(monkeypatch):
    """Whether the disk has room; full, an open file takes half of what it is given."""
    full = [False]
    opened = Path.open

    def opens(path: Path, mode: str = "r", **rest):
        file = opened(path, mode, **rest)
        return _Full(file) if full[0] and mode != "r" else file

    monkeypatch.setattr(Path, "open", opens)
    return full


class _Full:
    """A file on a disk without room for all that is written."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self):
        return self._file.read()

    def write(self, text: str):
        self._file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_rows_wait_while_the_disk_is_full_with_one_warning(tmp_path, full_disk):
    said, path = [], tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0, said.append)
    log.write(row(1))
    full_disk[0] = True
    for step in (2, 3):
        log.write(row(step))
    assert (
        len(said) == 1
        and "metrics.jsonl: No space left" in said[0]
        and "training continues" in said[0]
    )
    assert [r["step"] for r in read_rows(path)] == [1]  # the half of a line is left out
    full_disk[0] = False
    log.write(row(4))
    assert read_rows(path) == [row(step) for step in (1, 2, 3, 4)]
    full_disk[0] = True
    log.write(row(5))
    assert len(said) == 2  # full for the second time
    log.close()
    full_disk[0] = False
    log.close()
    assert read_rows(path)[-1] == row(5)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rows_that_were_taken_back_while_it_was_full_do_not_come_again(tmp_path, full_disk):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0, lambda line: None)
    for step in (1, 2, 3):
        log.write(row(step))
    full_disk[0] = True
    log.rewind(1)
    full_disk[0] = False
    log.flush()
    assert read_rows(path) == [row(1)]


def test_the_final_row_must_be_written(tmp_path, full_disk):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, lambda line: None)
    full_disk[0] = True
    log.write(row(1))
    with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl .*free space"):
        log.write({"kind": "final", "step": 2})
    log.close()
