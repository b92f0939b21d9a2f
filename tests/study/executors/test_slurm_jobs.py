"""SLURM's options and answers, and the errors where it or submitit is missing."""

import sys

import pytest

from deepjax.errors import InputError
from deepjax.study.executors.jobs import JobState
from deepjax.study.executors.slurm import Slurm, parse_squeue, sbatch_options
from deepjax.study.runner import run_study
from deepjax.study.study import Options
from tests.study import toy


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["partition=gpu", "time=4:00:00"], {"partition": "gpu", "time": "4:00:00"}),
        (["--gpus=a100:1", "mem=16G"], {"gpus": "a100:1", "mem": "16G"}),
        (["cpus_per_task=4"], {"cpus-per-task": "4"}),
        (["constraint=a=b", "exclusive"], {"constraint": "a=b", "exclusive": True}),
    ],
)
def test_options_are_those_of_sbatch(given, found):
    assert sbatch_options(given) == found


@pytest.mark.parametrize(
    "given", ["time=", "time", "=5", "Time=5", "a b=c", "time=5\n#SBATCH -p x"]
)
def test_other_forms_are_refused(given):
    with pytest.raises(InputError, match="allowed: long options of sbatch as KEY=VALUE"):
        sbatch_options([given])


@pytest.mark.parametrize("given", ["array=0-3", "output=x", "ntasks=2", "requeue", "wrap=ls"])
def test_options_that_the_executor_sets_are_refused(given):
    with pytest.raises(InputError, match="which the executor sets itself; omit it"):
        sbatch_options([given])


STATES = """\
7|PENDING|Priority|toy/runs/a
8|PENDING|None|toy/runs/b
9|RUNNING|None|toy/runs/c|d
10|COMPLETING|None|toy/measured/seed0
11|CANCELLED|None|toy/runs/a
12|OUT_OF_MEMORY|OutOfMemory|toy/runs/a
13|RUNNING|None|toy_again/runs/a
"""


def test_states_of_jobs():
    """Those of SLURM's manual of squeue, "JOB STATE CODES"; of other studies there are none."""
    assert parse_squeue(STATES, "toy/") == {
        "7": JobState("PENDING (Priority)"),
        "8": JobState("PENDING"),
        "9": JobState("RUNNING"),
        "10": JobState("COMPLETING"),
        "11": JobState("CANCELLED", ended=True, cancelled=True),
        "12": JobState("OUT_OF_MEMORY", ended=True),
    }


@pytest.fixture(autouse=True)
def _script(monkeypatch):
    """A program that jobs can run: xdist's own, "-c", is refused."""
    monkeypatch.setattr(sys, "argv", [__file__])


@pytest.fixture
def without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_submitit_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"install it with: pip install 'deepjax\[cluster\]'"):
        run_study(toy.STUDY, Options(output_dir=tmp_path / "out", executor="slurm"))
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_it_says_where_to_start(tmp_path, without_slurm, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", sys)  # any module: nothing is submitted
    with pytest.raises(InputError, match="sbatch is not on PATH; start this on a machine from"):
        run_study(toy.STUDY, Options(output_dir=tmp_path / "out", executor="slurm"))
    assert list(tmp_path.iterdir()) == []


def test_a_percent_sign_in_the_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(sys.modules, "submitit", sys)
    with pytest.raises(InputError, match="a path without %, for SLURM"):
        Slurm(tmp_path / "50%j", lambda task: [task], [], {}, 1)
