"""Run directories at a moment: their state, their progress, and which there are below a folder."""

import json
import os
import signal
import subprocess
import sys

import pytest

from deepjax.errors import InputError
from deepjax.training import RunOptions, TrainConfig, train, train_config
from deepjax.training.run_directory.average import average_checkpoints
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.run_lock import hold
from deepjax.training.run_directory.run_summary import find_runs, require_runs, summarize_run
from deepjax.training.run_directory.starts import NAME, read_starts, record_start

CONFIG = train_config("cifar_plain20", width=2, batch_size=240, epochs=2)  # 5 steps an epoch


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("summary") / "done"
    train(CONFIG, out, RunOptions(keep_last=2))
    return out


def written(out, rows):
    """A run directory with a log of such rows: (kind, step)."""
    init_run_dir(out, CONFIG)
    lines = [json.dumps({"kind": kind, "step": step}) + "\n" for kind, step in rows]
    (out / "metrics.jsonl").write_text("".join(lines))
    return out


def test_a_run_that_is_done(done):
    run = summarize_run(done)
    assert (run.state, run.step, run.total_steps) == ("done", 10, 10)
    assert [row["step"] for row in run.epochs] == [5, 10]
    last = json.loads((done / "metrics.jsonl").read_text().splitlines()[-1])
    assert run.last("test_error") == last["test_error"] and run.last("nothing") is None
    assert run.updated == os.path.getmtime(done / "metrics.jsonl")


def test_states(done, tmp_path):
    stopped = written(tmp_path / "stopped", [("first", 1), ("epoch", 5)])
    assert (summarize_run(stopped).state, summarize_run(stopped).step) == ("stopped", 5)
    with hold(stopped, print):
        assert summarize_run(stopped).state == "running"
    halted = written(tmp_path / "halted", [("epoch", 5), ("halted", 7)])
    assert (summarize_run(halted).state, summarize_run(halted).step) == ("halted", 7)
    init_run_dir(tmp_path / "new", CONFIG)
    new = summarize_run(tmp_path / "new")
    assert (new.state, new.step, new.rows) == ("stopped", 0, [])
    average_checkpoints([done], tmp_path / "average", batches=1)
    average = summarize_run(tmp_path / "average")
    assert (average.state, average.step) == ("average", 10)


KILLED = """
import os, signal, sys
from pathlib import Path
from deepjax.training.run_directory.run_lock import hold
with hold(Path(sys.argv[1]), print, one_process=True):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_process_that_was_killed_is_none(tmp_path):
    """Its file is left, with the id of a process that has ended."""
    out = written(tmp_path / "run", [("first", 1)])
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (out / "run.lock").exists() and summarize_run(out).state == "stopped"


def test_runs_below_a_folder(tmp_path):
    for name in ("b/run", "a", "b/other", "study/runs/seed0"):
        init_run_dir(tmp_path / name, TrainConfig("vgg11"))
    (tmp_path / "study" / "config.json").write_text('{"preset": "small"}')  # of a study
    for name, text in (("broken", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["a", "b/other", "b/run", "study/runs/seed0"]
    assert require_runs(tmp_path / "a") == [tmp_path / "a"]
    for name, message in (("list", "has no run below it"), ("none", "does not exist")):
        with pytest.raises(InputError, match=f"{name} {message}; allowed: the --output-dir"):
            require_runs(tmp_path / name)


def test_starts_are_recorded_with_versions_and_hardware(done, tmp_path):
    [start] = read_starts(done)
    assert start["step"] == 0 and "jax " in start["versions"] and "cpu" in start["hardware"]
    assert start.keys() == {"step", "time", "command", "versions", "hardware"}
    (tmp_path / NAME).write_text('{"step": 0}\nno json\n{"other": 1}\n{"step"')
    record_start(tmp_path, 7)
    assert [each["step"] for each in read_starts(tmp_path)] == [0, 7]
    assert read_starts(tmp_path / "none") == []


def test_a_second_process_is_a_second_start(tmp_path):
    """Interrupted before the last checkpoint: the second starts from that of the first epoch."""
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path, report=lambda done, total, note: interrupt(done))
    train(CONFIG, tmp_path)
    assert [each["step"] for each in read_starts(tmp_path)] == [0, 5]


def interrupt(done):
    if done == 10:
        raise KeyboardInterrupt
