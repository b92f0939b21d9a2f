"""Tasks as SLURM jobs, by submitit: it writes the scripts and submits them.

submitit's own functions (`submit`, with `CommandFunction` too) pickle what they run and return, end
a command by SIGKILL on the signal of a time limit, before it could save, lose its exit code, and
learn that a job was killed from `sacct` alone, which needs an accounting database. So each task is
submitted as a command line, its script leaves the exit code in a file, and `squeue` is asked which
jobs there are. Nothing is pickled.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.errors import InputError, require
from deepjax.study.executors.jobs import JobState
from deepjax.study.executors.tasks import FOLDER

SIGNAL_SECONDS = 120  # between a signal and the time limit: for one step and one save
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
# Options of sbatch that would break what the executor relies on.
RESERVED = (
    *("array", "error", "job-name", "no-requeue", "ntasks", "ntasks-per-node", "open-mode"),
    *("output", "parsable", "requeue", "test-only", "wait", "wrap"),
)
FLAGS = ("contiguous", "exclusive", "overcommit", "oversubscribe", "use-min-nodes")  # no value


def sbatch_options(given: Sequence[str]) -> dict[str, str | bool]:
    """Options of sbatch from KEY=VALUE, or KEY for one of FLAGS.

    Raises InputError for another form, and for options that the executor sets itself.

    >>> sbatch_options(["partition=gpu", "cpus_per_task=4", "exclusive"])
    {'partition': 'gpu', 'cpus-per-task': '4', 'exclusive': True}
    """
    found: dict[str, str | bool] = {}
    for each in given:
        name, equals, value = each.partition("=")
        name = name.removeprefix("--").replace("_", "-")
        if name in RESERVED:
            raise InputError(
                f"executor_options has {each!r}, which the executor sets itself; omit it"
            )
        is_option = re.fullmatch(r"[a-z][a-z0-9-]+", name) and value.isprintable()
        if not is_option or not (value or (name in FLAGS and not equals)):
            raise InputError(
                f"executor_options has {each!r}; allowed: long options of sbatch as KEY=VALUE, "
                "such as partition=gpu time=4:00:00 gpus=1 mem=16G"
            )
        found[name] = value if equals else True
    return found


class Slurm:
    """The queue of a cluster, for the tasks of one study.

    Logs, scripts and exit codes are in tasks/ in the study directory, a folder for each task.
    """

    def __init__(
        self,
        out: Path,
        command: Callable[[str], Sequence[str]],
        options: Sequence[str],
        environment: Mapping[str, str],
        cores: int,
    ) -> None:
        """command: of a task by its name. cores: of each task, unless the options say otherwise.

        Raises InputError without submitit or SLURM, and for invalid options.
        """
        self._submitit, self._out, self._command = _submitit(), out, command
        # In a name of a file SLURM replaces %j and the like.
        require("%" not in str(out), "output_dir", str(out), "a path without %, for SLURM")
        self._options = {"cpus-per-task": str(cores)} | sbatch_options(options)
        self._setup = [
            *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
            # Since SLURM 22.05 srun does not inherit this from sbatch.
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        ]

    def submit(self, task: str) -> str:
        """Submit one task, and return the number of its job."""
        folder = self._folder(task)
        folder.mkdir(parents=True, exist_ok=True)
        (self._out / FOLDER).chmod(0o700)  # the scripts in it are run as you
        executor = self._submitit.SlurmExecutor(folder)
        executor.update_parameters(
            job_name=self._job_name(task),
            time=None,
            wckey=None,
            signal_delay_s=SIGNAL_SECONDS,
            stderr_to_stdout=True,
            setup=self._setup,
            teardown=_leave_exit_code(folder),
            # A job that ended is submitted again by the command that follows it.
            additional_parameters={"ntasks": 1, "no-requeue": True, **self._options},
        )
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                job = executor._submit_command(shlex.join(self._command(task)))
        except (RuntimeError, OSError) as error:  # submitit's own are RuntimeErrors
            for script in folder.glob(".submission_file_*.sh"):
                script.unlink()
            raise InputError(f"sbatch refused task {task}: {_one_line(str(error))}") from error
        return job.job_id

    def present_job(self, task: str, states: Mapping[str, JobState]) -> str | None:
        """The job of this task that is still in the queue."""
        scripts = sorted(self._folder(task).glob("*_submission.sh"), reverse=True)
        jobs = [path.name.split("_")[0] for path in scripts]
        return next((job for job in jobs if job in states and not states[job].ended), None)

    def states(self) -> Mapping[str, JobState]:
        """Your jobs of this study, by number."""
        format = "--format=%A|%T|%r|%j"
        command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", format]
        try:
            done = subprocess.run(  # noqa: S603  # SLURM's own command
                command, capture_output=True, text=True, check=False, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"squeue failed: {_one_line(str(error))}") from error
        if done.returncode:
            raise InputError(f"squeue failed: {_one_line(done.stderr)}")
        return parse_squeue(done.stdout, self._job_name(""))

    def exit_code(self, task: str, job: str) -> int | None:
        """The exit code that the script of a job left."""
        try:
            return int((self._folder(task) / f"{job}.exit").read_text())
        except (OSError, ValueError):
            return None

    def log(self, task: str, job: str) -> Path:
        """The messages of a job."""
        return self._folder(task) / f"{job}_0_log.out"

    def cancel_command(self, jobs: Sequence[str]) -> str:
        """By scancel."""
        return shlex.join(["scancel", *jobs])

    def _folder(self, task: str) -> Path:
        return self._out / FOLDER / task

    def _job_name(self, task: str) -> str:
        return f"{self._out.name}/{task}"


def parse_squeue(text: str, prefix: str) -> dict[str, JobState]:
    """States by job, of the jobs whose name begins with a prefix.

    text: lines of number|state|reason|name.

    >>> parse_squeue("17|PENDING|Priority|toy/runs/a", "toy/")
    {'17': JobState(text='PENDING (Priority)', ended=False, cancelled=False)}
    """
    found = {}
    for line in text.splitlines():
        job, state, reason, name = line.split("|", 3)
        if name.startswith(prefix):
            shown = f"{state} ({reason})" if state == "PENDING" and reason != "None" else state
            found[job] = JobState(shown, state in ENDED, state == "CANCELLED")
    return found


def _leave_exit_code(folder: Path) -> list[str]:
    """Lines of a script that write the exit code of the command before them."""
    path = f"{shlex.quote(str(folder))}/$SLURM_JOB_ID.exit"
    return ["code=$?", f"echo $code > {path}.partial && mv {path}.partial {path}", "exit $code"]


def _one_line(text: str) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines()]
    return "; ".join(line for line in lines if line)[:300]


def _submitit() -> Any:
    """The module. Raises InputError where it is not installed, or where there is no SLURM."""
    try:
        import submitit  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise InputError(
            "submitit is not installed; install it with: pip install 'deepjax[cluster]'"
        ) from None
    missing = [name for name in ("sbatch", "srun", "squeue") if not shutil.which(name)]
    if missing:
        raise InputError(
            f"executor is 'slurm', and {missing[0]} is not on PATH; start this on a machine from "
            "which jobs are submitted to SLURM, or use --executor local"
        )
    return submitit
