"""The launcher for SLURM: its decisions, and jobs of two tasks by a SLURM that the test starts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepjax.training.metrics.metrics_log import TIMES, read_rows
from tests.slurm_cluster import Slurm, needs_slurm, slurm_cluster, until
from tests.training.distributed.test_cluster import free_port, listening

ROOT = Path(__file__).parents[3]
FLAGS = ["--model", "cifar_plain20", "--width", "2", "--batch-size", "240"]  # 5 steps an epoch


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def submit(slurm: Slurm, out: Path, *flags: str) -> str:
    """The launcher with two tasks; returns the job's number."""
    launcher = [
        "--parsable",
        "--ntasks",
        "2",
        "--output",
        str(slurm.folder / "%j.log"),
        "experiments/launch/slurm.sh",
    ]
    return slurm.run("sbatch", *launcher, *FLAGS, "--output-dir", str(out), *flags)


def launch(folder: Path, code: int, **environment: str) -> tuple[int, str]:
    """The launcher's exit code and output; srun prints its environment and exits with `code`."""
    for name, body in {
        "srun": f"env; echo srun $*; exit {code}",
        "scontrol": "echo scontrol $*",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    given = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "4099",
        "SLURM_JOB_NUM_NODES": "1",
    }
    command = ["bash", "experiments/launch/slurm.sh", "--output-dir", "a folder"]
    done = subprocess.run(
        command, env=given | environment, cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "code, restarts, again",
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (3, 0, False),
        (75, 9, True),
        (75, 10, False),
        (134, 0, True),
        (137, 9, True),
        (137, 10, False),
        (143, 0, True),
        (143, 99, True),
    ],
)
def test_a_job_is_requeued_by_exit_code(tmp_path, code, restarts, again):
    ended, said = launch(tmp_path, code, SLURM_RESTART_COUNT=str(restarts))
    assert ended == code
    assert ("scontrol requeue 4099" in said) == again


def test_the_launcher_hands_on_what_jax_and_srun_need(tmp_path):
    _, said = launch(
        tmp_path, 0, https_proxy="proxy:1", HTTP_PROXY="proxy:1", SLURM_CPUS_PER_TASK="3"
    )
    assert "python experiments/train.py --output-dir a folder" in said
    assert (
        "JAX_COORDINATOR_ADDRESS=127.0.0.1:61443" in said
        and "JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:61443" in said
    )
    assert "SRUN_CPUS_PER_TASK=3" in said and "proxy:1" not in said
    _, said = launch(tmp_path, 0, SLURM_JOB_NUM_NODES="2")
    # jax finds the first node itself.
    assert "JAX_COORDINATOR" not in said and "SRUN_CPUS_PER_TASK" not in said


def by_flags(environment: dict[str, str], out: Path, *flags: str) -> None:
    """The same run as two processes that are told of each other."""
    command = [sys.executable, "experiments/train.py", *FLAGS, "--output-dir", str(out), *flags]
    command += [
        "--hosts.coordinator",
        f"127.0.0.1:{free_port()}",
        "--hosts.processes",
        "2",
        "--hosts.process-id",
    ]
    pair = [
        subprocess.Popen([*command, str(number)], env=environment, cwd=ROOT) for number in range(2)
    ]
    try:
        assert [process.wait(300) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
            process.wait()


def digest(out: Path) -> str:
    """Digest and step of a run's newest checkpoint, from the command line."""
    command = [sys.executable, "-m", "deepjax", "runs", "digest", str(out)]
    sha256, _, step, *_ = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    return f"{sha256} at step {step}"


def rows(out: Path) -> list[dict[str, object]]:
    """The log but for the times."""
    return [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_rows(out / "metrics.jsonl")
    ]


@needs_slurm
@pytest.mark.slow
def test_a_job_of_two_tasks_ends_as_two_processes_by_flags(slurm, tmp_path):
    job = submit(slurm, tmp_path / "job", "--epochs", "1")
    slurm.wait(job)
    by_flags(slurm.environment, tmp_path / "flags", "--epochs", "1")
    assert [row["kind"] for row in rows(tmp_path / "job")] == ["first", "epoch", "final"]
    assert len(list((tmp_path / "job").rglob("config.json"))) == 1
    assert digest(tmp_path / "job") == digest(tmp_path / "flags")
    assert rows(tmp_path / "job") == rows(tmp_path / "flags")
    # Two processes of one run, not two runs.
    assert "0: done: 5 steps" in slurm.log(job) and "1: done" not in slurm.log(job)


@needs_slurm
@pytest.mark.slow
def test_a_stopped_job_is_queued_again_and_ends_in_the_same_bits(slurm, tmp_path):
    # The job resumes from the checkpoint that SIGTERM saved.
    out, flags = (tmp_path / "stopped", ["--epochs", "6", "--save-every", "1000"])
    job = submit(slurm, out, *flags)
    until(lambda: (out / "metrics.jsonl").exists(), "the first step is logged", 120)
    assert listening(61440 + int(job) % 4096) == {"127.0.0.1"}
    # To the tasks and not to the script, as before the time limit.
    slurm.run("scancel", f"--signal={signal.SIGTERM.name}", job)
    until(lambda: slurm.job(job)["Restarts"] == "1", "the job is in the queue again", 60)
    assert "srun exited 143 after 0 restarts" in slurm.log(job)
    until(slurm.idle, "SLURM has taken the job back", 60)
    # SLURM would wait for two minutes; within a second the node mistakes the new start for the old.
    time.sleep(10)
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.wait(job)
    assert "srun exited 0 after 1 restarts" in slurm.log(job) and "resumed after step" in slurm.log(
        job
    )
    # The reference needs no script either: jax finds the first process by the name of its node.
    command = [
        "srun",
        "--ntasks",
        "2",
        "python",
        "experiments/train.py",
        *FLAGS,
        "--output-dir",
        str(tmp_path / "whole"),
        *flags,
    ]
    slurm.run(*command)
    assert digest(out) == digest(tmp_path / "whole")
    assert rows(out) == rows(tmp_path / "whole")
