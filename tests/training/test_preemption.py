"""SIGTERM wherever it arrives, other signals of schedulers, and a step that never ends."""

import contextlib
import dataclasses
import errno
import io
import os
import signal
import sys
import time

import pytest

from deepjax.errors import Stopped
from deepjax.training import RunOptions, TrainConfig, compile_training, loop, preemption, train
from deepjax.training.checkpoint.inspect import steps_of
from deepjax.training.checkpoint.manifest import problems, read_manifest
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.preemption import STOP_SIGNALS, stop_signals, watchdog
from tests.faults.runs import outcome

# 5 steps per epoch, two batches of test images.
CONFIG = TrainConfig(model="cifar_plain20", width=2, batch_size=240, epochs=2)
EVERY_2 = RunOptions(save_every=2)


@pytest.fixture(scope="module")
def programs():
    return compile_training(CONFIG)


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(CONFIG, out, EVERY_2, programs=programs)
    return outcome(out)


@pytest.mark.system
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 12])
def test_sigterm_during_evaluation_loses_nothing(batch, programs, whole, tmp_path):
    """Batches 1, 2 belong to epoch 1, 3, 4 to epoch 2, the others to the final evaluation."""
    calls = []

    def terminated(params, batch_stats, images):
        calls.append(images)
        if len(calls) == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return programs.eval_step(params, batch_stats, images)

    watched = dataclasses.replace(programs, eval_step=terminated)
    if batch < 12:  # 4 batches in the epochs, 6 + 2 at the end
        with pytest.raises(Stopped, match="stopped by SIGTERM after step"):
            train(CONFIG, tmp_path, EVERY_2, programs=watched)
    else:
        train(CONFIG, tmp_path, EVERY_2, programs=watched)  # nothing is left to do: it ends
    train(CONFIG, tmp_path, EVERY_2, programs=watched)
    assert outcome(tmp_path) == whole
    # In the second epoch's evaluation: the checkpoint was saved before its error was known.
    if batch == 4:
        newest = tmp_path / "checkpoints" / str(steps_of(tmp_path / "checkpoints")[-1])
        epochs = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "epoch"]
        assert (read_manifest(newest)["metric"], problems(newest)) == (epochs[-1]["test_error"], [])


@pytest.fixture(autouse=True)
def _handlers_of_a_terminal():
    """As in a terminal, also if the tests run in the background or under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_stop_signal_is_listened_to_and_its_handler_put_back(number):
    before = signal.getsignal(number)
    with stop_signals() as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping() and stopping() and stopping.signal == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "own", [signal.SIG_IGN, lambda *_: None], ids=["ignored, as by nohup", "handled by the program"]
)
def test_signals_that_are_not_free_are_left_alone(own):
    before = signal.signal(signal.SIGHUP, own)
    try:
        with stop_signals() as stopping:
            assert signal.getsignal(signal.SIGHUP) is own
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_still_interrupts():
    with stop_signals(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_other_signals_are_forwarded_as_sigterm_among_several_processes(monkeypatch):
    """Jax's preemption service, which tells all processes, listens to SIGTERM."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
    try:
        with stop_signals() as stopping:
            signal.raise_signal(signal.SIGUSR1)
        assert heard == [signal.SIGTERM] and stopping.signal == signal.SIGUSR1
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.system
@pytest.mark.parametrize("number", STOP_SIGNALS[1:])
def test_a_run_that_another_signal_stops_is_saved(number, programs, whole, tmp_path):
    def stopped(step, total, note):
        os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=rf"stopped by {number.name} after step \d+ of 10, saved"):
        train(CONFIG, tmp_path, EVERY_2, programs=programs, report=stopped)
    train(CONFIG, tmp_path, EVERY_2, programs=programs)
    assert outcome(tmp_path) == whole


def test_without_a_beat_the_stacks_are_shown_and_the_process_ends_with_75(capfd):
    ends = []
    with watchdog(0.2, ends.append):
        time.sleep(1.0)
    said = capfd.readouterr().err
    assert ends == [75]
    assert (
        "no step ended within 0.2 s" in said
        and "most recent call first" in said
        and "test_preemption.py" in said
    )


class _Full(io.StringIO):
    """A stream whose disk is full, and which is no file."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    "stream", [_Full, _closed, io.StringIO, lambda: None], ids=["full", "closed", "no file", "none"]
)
@pytest.mark.parametrize("both", [True, False])
def test_a_broken_stderr_keeps_no_hung_process_alive(stream, both, monkeypatch):
    ends = []
    monkeypatch.setattr(sys, "stderr", stream())
    if both:
        monkeypatch.setattr(sys, "__stderr__", stream())
    with watchdog(0.1, ends.append):
        time.sleep(0.4)
    assert ends == [75]


@pytest.mark.system
def test_the_watchdog_looks_on_while_the_step_is_compiled(monkeypatch, tmp_path):
    """Data and compilation come before the first step, and can hang too."""
    watched = []

    @contextlib.contextmanager
    def watching(limit):
        watched.append(limit)
        yield lambda: watched.append("beat")

    def built(config, options, beat, *rest):
        beat()
        raise InterruptedError

    monkeypatch.setattr(loop, "watchdog", watching)
    monkeypatch.setattr(loop, "compile_training", built)
    with pytest.raises(InterruptedError):
        train(CONFIG, tmp_path, RunOptions(step_timeout=5.0))
    assert watched == [5.0, "beat", "beat"]  # weights that are read, and the compilation


def test_beats_and_no_limit_keep_it_quiet(capfd):
    ends = []
    with watchdog(0.6, ends.append) as beat:
        for _ in range(5):
            time.sleep(0.2)
            beat()
    with watchdog(0, ends.append) as beat:
        beat()
    assert ends == [] and capfd.readouterr().err == ""
