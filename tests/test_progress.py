"""Progress: plain lines with rate and time left, bars on a terminal; it never stops the work."""

import os

import pytest

from deepjax import progress
from deepjax.data.threads import progress as data_progress


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
    assert progress.format_duration(seconds) == words


def test_a_counter_prints_a_line_now_and_then(clock, capsys):
    """A second an image: after 30 of 100 images, 70 seconds are left; short work prints nothing."""
    with data_progress("reading", 100, every=30) as advance:
        for _ in range(70):
            clock[0] += 1
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "reading: image 30/100, 1.0 images/s, 1 min 10 s left",
        "reading: image 60/100, 1.0 images/s, 40 s left",
    ]
    with data_progress("reading", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == ""
