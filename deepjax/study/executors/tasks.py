"""The tasks of a study for a scheduler: each makes one run directory or one measurement."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from deepjax.errors import InputError, unknown_name_error
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.runs import Runner, is_finished
from deepjax.study.workers import Task, TaskReport
from deepjax.training.checkpoint.inspect import steps_of
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from deepjax.training.run_directory.progress_file import read_progress

FOLDER = "tasks"
"""In the study directory, by name of task: its lock and, where a scheduler runs it, its logs."""
# The number of a task among those of its job: of an array of SLURM, of an indexed Job.
INDICES = ("JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID")


@dataclasses.dataclass(frozen=True)
class StudyTask:
    """One part of a study that any process may run; repeated after a kill, it resumes."""

    name: str
    """The path of what it makes in the study directory, such as runs/plain44/lr0.1-seed100."""
    total: int
    """Units of its progress."""
    run: Task
    """In this process."""
    is_done: Callable[[], bool]
    units_done: Callable[[], int]
    """As far as its files say."""
    saved: Callable[[], int] = lambda: 0
    """The step of its newest checkpoint."""


def training_task(
    arm: TrainedArm, rate: float, seed: int, out: Path, data_dir: str | None
) -> StudyTask:
    """One run of an arm. out: the study directory."""
    run_dir, steps = arm.run_dir(out, rate, seed), arm.config.total_steps
    name = str(run_dir.relative_to(out))

    def run(report: TaskReport) -> None:
        def report_run(_: str, done: int, total: int) -> None:
            report(name, done, total)

        Runner(arm, out, data_dir, None).run(rate, seed, report_run, 0, steps)

    return StudyTask(
        name,
        steps,
        run,
        functools.partial(is_finished, run_dir),
        functools.partial(_last_step, run_dir),
        functools.partial(_newest_checkpoint, run_dir),
    )


def _last_step(run_dir: Path) -> int:
    """The last step that its log, its checkpoints or its progress file know."""
    rows = read_rows(run_dir / METRICS)
    progress = read_progress(run_dir) or {"step": 0}
    return max(rows[-1]["step"] if rows else 0, progress["step"], _newest_checkpoint(run_dir))


def _newest_checkpoint(run_dir: Path) -> int:
    return max(steps_of(run_dir / "checkpoints"), default=0)


def by_name(tasks: Iterable[StudyTask]) -> dict[str, StudyTask]:
    """Tasks by name, in order."""
    return {task.name: task for task in tasks}


def named_tasks(
    names: Sequence[str], tasks: Mapping[str, StudyTask], environment: Mapping[str, str]
) -> list[StudyTask]:
    """The tasks that this process runs: of several names the one that its job has the number of.

    Without such a number all of them, in turn. Raises InputError for an unknown name.
    """
    for name in names:
        if name not in tasks:
            raise unknown_name_error("task", name, tasks)
    found = [tasks[name] for name in names]
    index = next((environment[name] for name in INDICES if environment.get(name)), "")
    if len(names) == 1 or not index:
        return found
    if not index.isdecimal() or int(index) >= len(names):
        variable = next(name for name in INDICES if environment.get(name))
        raise InputError(f"{variable} is {index!r}; allowed: 0 to {len(names) - 1}, a task each")
    return [found[int(index)]]


def task_command(
    program: Sequence[str], options: object, names: Sequence[str], changes: Mapping[str, object]
) -> list[str]:
    """The command of a task: the program with the given options, and the names of tasks.

    options: a dataclass with a default for each field; changes: options that replace its own.
    """
    command = [*program]
    for field in dataclasses.fields(options):  # pyright: ignore[reportArgumentType]
        value = changes.get(field.name, getattr(options, field.name))
        if value == field.default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        values = value if isinstance(value, tuple) else [] if value is True else [value]
        command += [flag, *map(str, values)]
    return [*command, "--task", *names] if names else command
