"""metrics.jsonl survives kills and resumes; the display tells rate and time left in words."""

import errno
import json
import os
from pathlib import Path

import pytest

from deepjax import progress
from deepjax.errors import InputError
from deepjax.training.metrics_log import MetricsLog, read_rows


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
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2 is damaged"):
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
        and "training goes on" in said[0]
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


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_tell_rate_and_time_left_over_all_tasks(clock, capsys):
    with progress.display("study", {"a": 100, "b": 100}) as report:
        clock[0] = 1.0
        report("a", 10, 100)  # resumed: these ten do not count as work
        report("b", 0, 100)
        clock[0] = 21.0
        report("a", 30, 100)
        report("b", 20, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "study: step 30/200, 1.0 steps/s, 2 min 50 s left"


def test_the_last_step_is_always_told(clock, capsys):
    with progress.display("run", {"run": 5}) as report:
        report("run", 1, 5, "loss 2")
        clock[0] = 2.0
        report("run", 5, 5, "loss 1")
    assert (
        capsys.readouterr().err.splitlines()[-1] == "run: step 5/5, 2.0 steps/s, 0 s left, loss 1"
    )


def test_work_goes_on_when_nobody_reads_its_progress_any_more(clock, monkeypatch):
    """As in `train.py ... 2>&1 | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as closed, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", closed)
        with progress.display("run", {"run": 5}) as report:
            report("run", 5, 5)
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_on_a_terminal_bars_are_drawn(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.display("study", {"plain": 10, "residual": 10}) as report:
        report("plain", 10, 10)
        report("residual", 5, 10)
    text = capsys.readouterr().err
    assert "plain" in text and "residual" in text and "15/20" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3725, "1 h 2 min")]
)
def test_durations_in_words(seconds, words):
    assert progress._duration(seconds) == words
