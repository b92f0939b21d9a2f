"""Where the time of the loop goes: each delay is in its own part, and the parts add up."""

import dataclasses
import time
import types

import jax
import pytest

from deepjax.training import TrainConfig, compile_training, train
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.evaluator import Evaluator
from deepjax.training.input_pipeline import BatchStream
from deepjax.training.metrics import loop_clock
from deepjax.training.metrics.loop_clock import PARTS, LoopClock, describe_time, time_by_part
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.metrics.throughput import ThroughputMeter
from deepjax.training.metrics.writer import scalars_of
from deepjax.training.recovery import Recovery

CONFIG = TrainConfig(model="cifar_resnet20", width=4, batch_size=240, epochs=2)  # 5 steps an epoch
ROUNDING = (len(PARTS) + 1) * 0.0005  # of total and parts, each to a millisecond


class FakeTime:
    """A clock that stands still unless it is moved."""

    def __init__(self, patch):
        self.now = 0.0
        patch.setattr(loop_clock, "time", types.SimpleNamespace(perf_counter=lambda: self.now))

    def delay(self, call, seconds):
        """The call, after so many seconds."""

        def delayed(*args, **kwargs):
            self.now += seconds
            return call(*args, **kwargs)

        return delayed


@pytest.fixture
def fake_time(monkeypatch):
    return FakeTime(monkeypatch)


class Computed:
    """An array that is or is not ready."""

    def __init__(self, ready):
        self.is_ready = lambda: ready


def seconds_of(clock):
    return {name: value for name, value in clock.row()["time"].items() if value}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("computing", [False, True])
def test_input_and_host_count_only_while_the_devices_are_idle(part, computing, fake_time):
    clock = LoopClock()
    clock.dispatched(Computed(not computing))
    with clock.part(part):
        fake_time.now += 3
    hidden = computing and part in ("input", "host")
    assert seconds_of(clock) == {"total": 3, "device" if hidden else part: 3}
    fake_time.now += 5
    assert seconds_of(clock) == {"total": 5, "device" if computing else "host": 5}


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        (None, False, "host"),  # the first step: its dispatch
        (True, False, "host"),  # the devices waited for the dispatch
        (False, False, "device"),  # the step before it was computed throughout
        (True, True, "device"),  # the call returned when the step was done
    ],
)
def test_the_call_of_a_step(before, after, part, fake_time):
    clock = LoopClock()
    if before is not None:
        clock.dispatched(Computed(before))
    fake_time.now += 2
    clock.dispatched(Computed(after))
    assert seconds_of(clock) == {"total": 2, part: 2}


def test_a_part_within_a_part_is_subtracted(fake_time):
    """10 s of a device with 4 s of input in it, and an error that ends both."""
    clock = LoopClock()
    with pytest.raises(KeyError), clock.part("device"):
        fake_time.now += 5
        with clock.part("input"):
            fake_time.now += 4
        fake_time.now += 1
        raise KeyError
    fake_time.now += 7
    assert seconds_of(clock) == {"total": 17, "host": 7, "device": 6, "input": 4}


def test_the_wait_for_data_is_that_of_the_clock(fake_time, monkeypatch):
    """Batches take 2 s, steps 1 s: of 9 s, the first and the third wait, 4 s, are idle."""
    target = "deepjax.training.metrics.throughput.time"
    monkeypatch.setattr(target, types.SimpleNamespace(perf_counter=lambda: fake_time.now))
    clock = LoopClock()
    meter = ThroughputMeter(30, clock)
    for ready in (True, False, True):
        clock.dispatched(Computed(ready))
        with clock.part("input"):
            fake_time.now += 2
        meter.add(steps=1)
        fake_time.now += 1
    assert meter.row() == {"images_per_second": 10.0, "data_wait": round(4 / 9, 4)}
    meter.start()
    assert meter.row() == {}


def test_rows_add_up_in_words_and_as_scalars():
    times = [{"total": 4.0, "input": 1.0, "device": 3.0}, {"total": 6.0, "device": 6.0}]
    rows = [{"kind": "epoch", "step": 1, "time": dict.fromkeys(PARTS, 0.0) | t} for t in times]
    assert [*time_by_part([{"kind": "first"}, *rows]).items()] == [("device", 9.0), ("input", 1.0)]
    assert describe_time(rows) == "10.0 s: device 90.0 %, input 10.0 %"
    assert describe_time([{"kind": "epoch"}]) == ""  # a run of an earlier version
    assert dict(scalars_of(rows[0]))["epoch_time/device"] == 3.0


@pytest.fixture(scope="module")
def programs():
    return compile_training(CONFIG)


def test_each_delay_is_in_its_own_part(programs, fake_time, monkeypatch, tmp_path):
    """Time passes in the delays alone; the step is waited for, so the devices are idle elsewhere.

    The guard is read after step 1 and at the ends of epochs, where `report` is called too; a save
    at the end of an epoch is in the row that follows.
    """

    def step(state, batch):
        return jax.block_until_ready(programs.train_step(state, batch))

    for owner, name, seconds in (
        (BatchStream, "__next__", 1),
        (Recovery, "read_guard", 20),
        (Checkpoints, "save", 3000),
        (Evaluator, "__call__", 40_000),
    ):
        monkeypatch.setattr(owner, name, fake_time.delay(getattr(owner, name), seconds))
    delayed = dataclasses.replace(programs, train_step=fake_time.delay(step, 10))
    report = fake_time.delay(lambda done, total, note: None, 500)
    train(CONFIG, tmp_path, programs=delayed, report=report)
    rows = [row["time"] for row in read_rows(tmp_path / "metrics.jsonl") if "time" in row]
    none = dict.fromkeys(PARTS, 0)
    first = {"input": 5, "device": 5 * 10 + 2 * 20, "host": 2 * 500, "evaluation": 40_000}
    second = {"input": 5, "device": 5 * 10 + 20, "host": 500, "evaluation": 40_000}
    second["checkpoint"] = 3000
    final = {"checkpoint": 3000, "evaluation": 2 * 40_000}
    for row, parts in zip(rows, (first, second, final), strict=True):
        assert row == none | parts | {"total": sum(parts.values())}


def test_the_parts_add_up_to_the_wall_clock(programs, tmp_path):
    """Within the rounding; all rows together take no longer than the call of `train`."""
    began = time.perf_counter()
    train(CONFIG, tmp_path, programs=programs)
    elapsed = time.perf_counter() - began
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "time" in row]
    assert [row["kind"] for row in rows] == ["epoch", "epoch", "final"]
    for row in rows:
        parts = sum(row["time"][part] for part in PARTS)
        assert parts == pytest.approx(row["time"]["total"], abs=ROUNDING)
    totals = [row["time"]["total"] for row in rows]
    assert sum(totals) <= elapsed + len(rows) * 0.0005
    # "seconds": from the first step to the evaluation of this epoch
    assert sum(totals[:2]) >= rows[1]["seconds"] - 3 * 0.0005
