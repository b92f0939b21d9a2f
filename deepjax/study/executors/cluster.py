"""A study on a cluster: its tasks as SLURM jobs, one task in this process, a manifest."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deepjax.errors import require
from deepjax.progress import display, say_on_stderr
from deepjax.study.executors.jobs import JobRunner
from deepjax.study.executors.kubernetes import kubernetes_options, manifest
from deepjax.study.executors.slurm import Slurm
from deepjax.study.executors.study_tasks import (
    measurements,
    missing_pilots,
    missing_runs,
    study_tasks,
)
from deepjax.study.executors.tasks import FOLDER, StudyTask, named_tasks, task_command
from deepjax.study.prepared import PreparedStudy, directory_name, prepare
from deepjax.study.study import Options, Study
from deepjax.study.workers import worker_environment
from deepjax.training.run_directory.run_lock import hold

# Options of the command that follows the jobs, and not of theirs.
OF_ALL_TASKS = {
    "executor": "local",
    "executor_options": (),
    "retries": Options.retries,
    "jobs": 0,
    "arm": "",
    "reuse_runs_from": None,
}


def chosen_tasks(run: PreparedStudy) -> list[StudyTask]:
    """The tasks that the options name for this process. Raises InputError for unknown ones."""
    return named_tasks(run.options.task, study_tasks(run), os.environ)


def run_tasks(run: PreparedStudy, tasks: Sequence[StudyTask]) -> None:
    """Run tasks in this process, in turn; finished ones are skipped.

    Raises InputError for one that another process runs.
    """
    for task in tasks:
        with hold(run.out / FOLDER / task.name, say_on_stderr, one_process=True):
            if task.is_done():
                print(f"{task.name} was done already")
                continue
            with display(task.name, {task.name: task.total}) as report:
                task.run(report)
            print(f"{task.name} is done in {run.out}")


class SlurmExecutor:
    """A job for each run and for each measurement, followed until it ends."""

    def __init__(self, run: PreparedStudy) -> None:
        """Raises InputError without submitit or SLURM, and for invalid options of sbatch."""
        options, script = run.options, sys.argv[0]
        program = _program(script, sys.executable)
        is_script = "-m" in program or Path(script).is_file()
        require(is_script, "program", script, "a script that jobs can run, as python FILE.py")

        def command(task: str) -> list[str]:
            return task_command(program, options, [task], OF_ALL_TASKS)

        environment = worker_environment(options.threads)
        self._slurm = Slurm(
            run.out, command, options.executor_options, environment, options.threads
        )

    def train(self, run: PreparedStudy) -> bool:
        """Train the runs that are missing; whether there were any."""
        arms = [arm for arm in run.arms.values() if run.options.arm in ("", arm.name)]
        return self._run(run, missing_runs(run, arms), "step")

    def sweep(self, run: PreparedStudy) -> bool:
        """Train the pilots that are missing; whether there were any."""
        ran = False
        while self._run(run, missing_pilots(run), "step"):  # until no grid is to be extended
            ran = True
        return ran

    def measure(self, run: PreparedStudy) -> bool:
        """Measure the seeds that are missing; whether there were any."""
        return self._run(run, measurements(run), "part")

    def _run(self, run: PreparedStudy, tasks: Sequence[StudyTask], unit: str) -> bool:
        if tasks:
            options = run.options
            runner = JobRunner(self._slurm, options.retries, options.jobs, say_on_stderr)
            with display(run.title, {task.name: task.total for task in tasks}, unit) as report:
                runner.run(tasks, report)
        return bool(tasks)


def print_manifest(study: Study, options: Options) -> None:
    """Print the Kubernetes Jobs of a study; nothing is written, and no data is needed here.

    Raises InputError for invalid options.
    """
    given = kubernetes_options(options.executor_options)
    name = directory_name(study, options)
    out = options.output_dir or Path(given["mount"]) / name
    run = prepare(study, options)
    tasks = [*study_tasks(run)]
    measured = [task for task in tasks if task.startswith("measured/")]
    phases = {
        "train": [task for task in tasks if task not in measured],
        "measure": measured,
        "conclude": ["conclude"],
    }
    program = _program(os.path.relpath(sys.argv[0]), "python")
    changes = OF_ALL_TASKS | {"output_dir": out}
    arguments = {
        phase: task_command([], options, [] if phase == "conclude" else names, changes)
        for phase, names in phases.items()
    }
    print(
        manifest(
            name,
            str(out),
            {phase: names for phase, names in phases.items() if names},
            program,
            arguments,
            given,
            worker_environment(options.threads),
            options.retries,
            options.jobs,
        ),
        end="",
    )


def _program(script: str, python: str) -> list[str]:
    """The command that this process was started by, without options: a file, or `-m` a module."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:
        return [python, "-m", module.name.removesuffix(".__main__")]
    return [python, script]
