"""SIGTERM wherever it arrives, and a step that never ends."""

import os
import signal
import time

import pytest

from deepjax.errors import Stopped
from deepjax.training import RunOptions, TrainConfig, build, train
from deepjax.training.signals import sigterm, watchdog
from deepjax.training.trainer import _Run
from tests.faults.runs import outcome

CONFIG = TrainConfig(model="cifar_plain20", width=2, batch_size=240, epochs=2)  # 5 steps an epoch, two batches of test images
EVERY_2 = RunOptions(save_every=2)


@pytest.fixture(scope="module")
def programs():
    return build(CONFIG)


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(CONFIG, out, EVERY_2, programs=programs)
    return outcome(out)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 12])
def test_sigterm_during_evaluation_loses_nothing(batch, programs, whole, tmp_path, monkeypatch):
    """Batches 1 and 2 belong to the first epoch, 3 and 4 to the second, the others to the final evaluation."""
    put, calls = _Run._put_share, []

    def terminated(self, share):
        calls.append(share)
        if len(calls) == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(self, share)

    monkeypatch.setattr(_Run, "_put_share", terminated)
    if batch < 12:  # 4 batches in the epochs, 6 + 2 at the end
        with pytest.raises(Stopped, match="stopped by SIGTERM after step"):
            train(CONFIG, tmp_path, EVERY_2, programs=programs)
    else:
        train(CONFIG, tmp_path, EVERY_2, programs=programs)  # nothing is left to do: it ends
    train(CONFIG, tmp_path, EVERY_2, programs=programs)
    assert outcome(tmp_path) == whole


def test_the_handler_before_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping() and stopping()
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_a_beat_the_stacks_are_shown_and_the_process_ends_with_75(capfd):
    ends = []
    with watchdog(0.2, ends.append):
        time.sleep(1.0)
    said = capfd.readouterr().err
    assert ends == [75]
    assert "no step ended within 0.2 s" in said and "most recent call first" in said and "test_signals.py" in said


def test_beats_and_no_limit_keep_it_quiet(capfd):
    ends = []
    with watchdog(0.6, ends.append) as beat:
        for _ in range(5):
            time.sleep(0.2)
            beat()
    with watchdog(0, ends.append) as beat:
        beat()
    assert ends == [] and capfd.readouterr().err == ""
