"""TensorBoard and W&B get each step once, and their failure never ends a training."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.training import RunOptions
from deepjax.training.config import TrainConfig
from deepjax.training.metrics.histograms import BINS, count_values
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.metrics.run_log import RunLog, open_run_log
from deepjax.training.metrics.step_log import StepLog, StepMetrics
from deepjax.training.metrics.tensorboard import Tensorboard
from deepjax.training.metrics.wandb_run import WandbRun
from deepjax.training.metrics.writer import Histogram, MetricWriter, OptionalWriter, scalars_of
from tests.training.metrics.event_files import logged_values


def steps(*numbers):
    """Rows of steps."""
    return [{"kind": "step", "step": step, "loss": float(step)} for step in numbers]


class FakeRun:
    """What the writer uses of wandb.Run."""

    def __init__(self):
        self.rows, self.open = [], True

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, row):
        assert self.open
        self.rows.append(row)

    def finish(self):
        self.open = False


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb, with the arguments and the run of each start."""
    starts = []

    def init(**options):
        starts.append((options, FakeRun()))
        return starts[-1][1]

    module = types.SimpleNamespace(
        init=init, starts=starts, Settings=dict, Histogram=lambda np_histogram: np_histogram
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_the_names_of_scalars():
    row = {"kind": "epoch", "step": 5, "test_error": 0.5, "gradient_norms": {"head": 2.0}}
    row |= {"auxiliary": {"a": {"loss": 1.0}}, "layers": {"stem": {"mean": 3.0}}, "digest": "x"}
    assert dict(scalars_of(row)) == {
        "epoch/test_error": 0.5,
        "gradient_norm/head": 2.0,
        "epoch/auxiliary_a/loss": 1.0,
        "trace_mean/stem": 3.0,
    }


def test_tensorboard_shows_a_step_once_after_a_kill_and_a_rollback(tmp_path):
    killed = Tensorboard(tmp_path, 0)
    killed.write_steps(steps(1, 2, 3, 4))  # flushed, and never closed
    resumed = Tensorboard(tmp_path, 2)
    resumed.write_steps(steps(3, 4, 5))
    resumed.rewind(4)
    resumed.write_steps(steps(5, 6))
    resumed.close()
    assert logged_values(tmp_path) == {"step/loss": [(step, float(step)) for step in range(1, 7)]}


def test_tensorboard_has_the_histogram(tmp_path):
    values = np.random.default_rng(0).normal(size=1000)
    counts, edges = np.histogram(values, BINS)
    writer = Tensorboard(tmp_path, 0)
    writer.write_histograms(7, {"params/head": Histogram(counts, edges)})
    writer.close()
    ((step, found),) = logged_values(tmp_path)["params/head"]
    assert (step, found.num, found.min, found.max) == (7, 1000, values.min(), values.max())
    np.testing.assert_array_equal(found.bucket, counts)
    np.testing.assert_array_equal(found.bucket_limit, edges[1:])
    assert found.sum == pytest.approx(values.sum(), abs=1000 * (edges[1] - edges[0]) / 2)


def test_counts_are_those_of_numpy():
    counted = jax.jit(count_values)
    on_edges = np.random.default_rng(0).integers(0, BINS + 1, 5000) - 7.0  # the last one too
    for values in (on_edges, np.full(5000, 0.5)):
        counts, low, high = counted(jnp.asarray(values, jnp.float32))
        assert (low, high) == (values.min(), values.max()) and counts.sum() == values.size
        if high > low:
            np.testing.assert_array_equal(counts, np.histogram(values, BINS)[0])


def test_wandb_continues_its_run_and_logs_a_step_once(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "depth")
    first = WandbRun(tmp_path, {"width": 4})
    first.write_steps(steps(1, 2, 3))
    first.write({"kind": "epoch", "step": 3, "test_error": 0.5})
    first.write_histograms(3, {"params/head": Histogram(np.ones(2, int), np.arange(3.0))})
    first.close()
    second = WandbRun(tmp_path, {"width": 4})  # from the checkpoint of step 2
    second.write_steps(steps(3, 4))
    second.write({"kind": "epoch", "step": 3, "test_error": 0.5})
    second.write_histograms(3, {})
    second.rewind(3)
    second.write_steps(steps(4, 5))
    second.close()
    (options, run), (again, later) = wandb.starts
    assert options["id"] == again["id"] and again["resume"] == "allow"
    assert (options["project"], options["config"]) == ("depth", {"width": 4})
    assert run.rows[:4] == [
        *({"step/loss": float(step), "step": step} for step in (1, 2, 3)),
        {"epoch/test_error": 0.5, "step": 3},
    ]
    assert [row["step"] for row in run.rows] == [1, 2, 3, 3, 3]
    assert [row["step"] for row in later.rows] == [4, 4, 5]  # 4 twice: W&B takes nothing back


def test_after_a_kill_steps_are_logged_again_rather_than_lost(wandb, tmp_path):
    WandbRun(tmp_path, {}).write_steps(steps(1, 2, 3))  # never closed: W&B may not have them
    resumed = WandbRun(tmp_path, {})
    resumed.write_steps(steps(2, 3))
    assert [row["step"] for row in wandb.starts[1][1].rows] == [2, 3]
    assert wandb.starts[0][0]["id"] == wandb.starts[1][0]["id"]


class Broken(MetricWriter):
    """A writer whose network is gone."""

    def __init__(self):
        self.calls = 0

    def write(self, row):
        self.calls += 1
        raise ConnectionError("no route\nto host")

    write_steps = flush = close = write


def test_a_writer_that_fails_is_left_out_with_one_warning():
    lines, broken = [], Broken()
    writer = OptionalWriter("W&B", broken, lines.append)
    writer.write(steps(1)[0])
    writer.write_steps(steps(2))
    writer.close()
    assert broken.calls == 1
    assert lines == ["W&B failed: ConnectionError: no route; training continues without it"]


def test_a_logger_that_cannot_start_is_a_warning_and_a_missing_package_an_error(
    wandb, tmp_path, monkeypatch
):
    def opened(lines):
        options = RunOptions(wandb=True)
        return open_run_log(tmp_path, [], 0, TrainConfig("vgg11"), options, lines.append)

    def fail(**_):
        raise RuntimeError("not logged in")

    monkeypatch.setattr(wandb, "init", fail)
    opened(lines := []).write(steps(1)[0])
    assert lines == [
        "warning: W&B cannot start: RuntimeError: not logged in; training continues without it"
    ]
    assert read_rows(tmp_path / "metrics.jsonl") == steps(1)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install 'deepjax\[wandb\]'"):
        opened([])


def test_tensorboard_says_how_to_look_at_it(tmp_path):
    lines = []
    options = RunOptions(tensorboard=True)
    open_run_log(tmp_path, [], 0, TrainConfig("vgg11"), options, lines.append).close()
    assert lines[0].endswith(f"tensorboard --logdir {tmp_path / 'tensorboard'}")


class Recorder(MetricWriter):
    """Keeps the rows of steps."""

    def __init__(self):
        self.rows = []

    def write(self, row):
        raise AssertionError("not a row of metrics.jsonl")

    def write_steps(self, rows):
        self.rows += rows


@pytest.mark.parametrize("counts", [[1] * 7, [1, 4, 2]], ids=["one at a time", "several"])
def test_steps_are_written_when_the_loop_waits(counts):
    recorder = Recorder()
    log = StepLog(RunLog([], [MetricWriter(), recorder]), batch_size=8, every=2)
    done = 0
    for count in counts:
        steps = np.arange(done + 1, done + 1 + (9 if count > 1 else 1), dtype=np.float32)
        values = {"loss": steps, "learning_rate": 0 * steps + 0.5, "gradient_norm": 0 * steps + 2}
        values = {
            name: jnp.asarray(each if count > 1 else each[0]) for name, each in values.items()
        }
        log.add(StepMetrics(done + 1, count, values | {"errors": values["loss"]}))
        done += count
        assert not recorder.rows
    log.write(4)  # a halt: steps 5 to 7 computed nothing
    expected = {"kind": "step", "learning_rate": 0.5, "gradient_norm": 2.0}
    assert recorder.rows[0] == expected | {"step": 2, "loss": 2.0}
    last = recorder.rows[1]
    assert last.pop("images_per_second") > 0 and last == expected | {"step": 4, "loss": 4.0}
    log.write(7)
    assert len(recorder.rows) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"histogram_every": 5}, "histogram_every is 5; allowed: 0 without --tensorboard"),
        (
            {"histogram_every": 5, "tensorboard": True, "strategy": "pmap"},
            "histogram_every is 5; allowed: 0 under strategy 'pmap'",
        ),
        ({"log_every": 0}, "log_every is 0; allowed: 1 or more"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(InputError, match=message):
        RunOptions(**options)


@pytest.mark.system
def test_wandb_itself_offline(tmp_path, monkeypatch):
    """Needs the extra `wandb`."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first in (1, 3):
        run = WandbRun(tmp_path, {"width": 4})
        run.write_steps(steps(first, first + 1))
        run.write_histograms(first + 1, {"a": Histogram(np.ones(2, int), np.arange(3.0))})
        run.close()
    stored = json.loads((tmp_path / "wandb.json").read_text())
    assert stored["logged"] == {"step": 4, "histograms": 4}
    folders = [*(tmp_path / "wandb").glob(f"offline-run-*-{stored['id']}")]
    assert folders and all([*folder.glob("*.wandb")] for folder in folders)
