"""A complete study by a SLURM that the test starts, while its tasks are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepjax.training.checkpoint.inspect import digest
from deepjax.training.metrics.metrics_log import METRICS, TIMES, read_rows
from tests.slurm_cluster import Slurm, needs_slurm, slurm_cluster, until

ROOT = Path(__file__).parents[3]
STEPS = 3000  # of each run: some seconds, in which it can be killed
SCRIPT = f"""\
import dataclasses
from deepjax.command_line import parse, run_command
from deepjax.study.preset import Preset
from deepjax.study.runner import run_study
from deepjax.study.study import Options
from tests.study import toy

training = dict(toy.TRAINING, steps={STEPS})
presets = {{"quick": Preset("digits", 2, judged=False, training=training, rate=0.8)}}
STUDY = dataclasses.replace(toy.STUDY, presets=presets)
if __name__ == "__main__":
    run_command(lambda: run_study(STUDY, parse(Options)))
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    pytest.importorskip("submitit", reason="needs submitit: pip install 'deepjax[cluster]'")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "study.py"
    path.write_text(SCRIPT)
    return path


def command(script: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, str(script), "--output-dir", str(out), *options]


def environment(slurm: Slurm) -> dict[str, str]:
    return slurm.environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def process_of(task: str) -> int | None:
    """The process that runs a task, and not the srun that started it."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[0] == sys.executable and task in words:
            return int(folder.name)
    return None


def job_of(slurm: Slurm, task: str) -> str | None:
    """The job that runs a task."""
    lines = slurm.run("squeue", "--noheader", "--states=RUNNING", "--format=%A %j").splitlines()
    return next((line.split()[0] for line in lines if line.endswith(task)), None)


def is_training(out: Path, task: str) -> bool:
    return (out / task / METRICS).exists()  # since its first step


def rows(run: Path) -> list[dict[str, object]]:
    """The log but for the times."""
    return [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_rows(run / METRICS)
    ]


@needs_slurm
@pytest.mark.slow
def test_tasks_that_are_killed_give_the_results_of_one_machine(slurm, script, tmp_path):
    out = tmp_path / "slurm"
    options = ("--executor", "slurm", "--executor-options", "time=30", "--retries", "1")
    log = tmp_path / "study.log"
    with log.open("w") as file:
        study = subprocess.Popen(
            command(script, out, *options), env=environment(slurm), stdout=file, stderr=file
        )
    try:
        killed, stopped = "runs/deep/lr0.8-seed0", "runs/shallow/lr0.8-seed1"
        until(lambda: is_training(out, killed), f"{killed} trains", 120)
        process = process_of(killed)
        assert process is not None
        os.kill(process, signal.SIGKILL)
        until(lambda: is_training(out, stopped), f"{stopped} trains", 240)
        job = job_of(slurm, stopped)
        assert job is not None
        slurm.run("scancel", "--signal=TERM", job)  # to the task, as before a time limit
        # The command itself is killed too; the same command follows the jobs that it left.
        until(lambda: f"task {stopped}: exit 143" in log.read_text(), "it is submitted again", 60)
        study.kill()
        study.wait()
        resumed = subprocess.run(
            command(script, out, *options),
            env=environment(slurm),
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        study.kill()
        study.wait()
    assert resumed.returncode == 0, resumed.stderr
    assert "tasks are in the queue already" in resumed.stderr
    printed = log.read_text()
    assert f"task {killed}: exit 137" in printed and "submitted again (retry 1 of 1" in printed
    assert len(list((out / "tasks" / killed).glob("*_0_log.out"))) == 2
    # Nothing is pickled, and no one else may change what is run.
    assert not list(out.rglob("*.pkl")) and (out / "tasks").stat().st_mode & 0o777 == 0o700

    local = tmp_path / "local"
    subprocess.run(
        command(script, local, "--jobs", "2"), env=environment(slurm), check=True, timeout=600
    )
    runs = sorted(path.relative_to(local) for path in local.glob("runs/*/*"))
    assert len(runs) == 6
    for run in runs:
        assert digest(out / run) == digest(local / run), run
        assert rows(out / run) == rows(local / run), run
    found, expected = (json.loads((path / "result.json").read_text()) for path in (out, local))
    different = {name for name in expected if found[name] != expected[name]}
    assert different <= {"command", "wall time", "wall_seconds"}


@needs_slurm
@pytest.mark.slow
def test_invalid_options_end_the_command_in_one_line(slurm, script, tmp_path):
    for options, message in [
        ("partition=gpux", "sbatch refused task runs/deep/lr0.8-seed0: invalid partition"),
        ("walltime=5", "sbatch refused task runs/deep/lr0.8-seed0: unrecognized option"),
    ]:
        given = command(script, tmp_path, "--executor", "slurm", "--executor-options", options)
        done = subprocess.run(given, env=environment(slurm), capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")
        assert done.stderr.count("\n") == 1
    assert slurm.run("squeue", "--noheader") == ""


@needs_slurm
@pytest.mark.slow
def test_a_job_that_a_person_cancels_is_not_submitted_again(slurm, script, tmp_path):
    options = ("--executor", "slurm", "--jobs", "1", "--arm", "deep")
    study = subprocess.Popen(
        command(script, tmp_path, *options),
        env=environment(slurm),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        task = "runs/deep/lr0.8-seed0"
        until(lambda: job_of(slurm, task) is not None, f"{task} runs", 60)
        time.sleep(2)
        slurm.run("scancel", str(job_of(slurm, task)))
        _, printed = study.communicate(timeout=300)
    finally:
        study.kill()
    assert study.returncode == 2
    assert f"task {task} failed: its job" in printed and "was cancelled" in printed
    assert len(list((tmp_path / "tasks" / task).glob("*_submission.sh"))) == 1
