"""Runs a study in worker processes of this machine: an arm or a measurement at a time in each.

A worker keeps the compiled programs of an arm for all of its seeds, which one process a run cannot.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence

from deepjax.progress import display
from deepjax.study.arms.runs import collect, run_arm
from deepjax.study.executors.study_tasks import measurements
from deepjax.study.pilots.sweep import missing_rates, run_pilots
from deepjax.study.prepared import PreparedStudy
from deepjax.study.study import Options, pilot_grid
from deepjax.study.workers import RunAll, Task, default_jobs, worker_pool


class LocalExecutor:
    """Worker processes, which start with the first tasks."""

    def __init__(self, run_all: RunAll) -> None:
        """run_all: of a `worker_pool`."""
        self._run_all = run_all

    def train(self, run: PreparedStudy) -> bool:
        """Train the arms whose runs are missing; whether there were any."""
        arms = [arm for arm in run.arms.values() if run.options.arm in ("", arm.name)]
        missing = [arm for arm in arms if collect(arm, run.out) is None]
        data_dir, reuse = run.options.data_dir, run.options.reuse_runs_from
        tasks = [
            functools.partial(run_arm, arm, run.out, data_dir, reuse_runs_from=reuse)
            for arm in missing
        ]
        return self._run(run, tasks, {arm.name: arm.total_steps for arm in missing}, "step")

    def sweep(self, run: PreparedStudy) -> bool:
        """Train the pilots that are missing; whether there were any."""
        grids = {name: pilot_grid(run.preset, name) for name in run.arms}
        missing = [
            arm for name, arm in run.arms.items() if missing_rates(arm, grids[name], run.out)
        ]
        data_dir, reuse = run.options.data_dir, run.options.reuse_runs_from
        tasks = [
            functools.partial(
                run_pilots, arm, grids[arm.name], run.out, data_dir, reuse_runs_from=reuse
            )
            for arm in missing
        ]
        totals = {arm.name: len(grids[arm.name]) * arm.total_steps for arm in missing}
        return self._run(run, tasks, totals, "step")

    def measure(self, run: PreparedStudy) -> bool:
        """Measure the seeds that are missing; whether there were any."""
        tasks = measurements(run)
        totals = {task.name: task.total for task in tasks}
        return self._run(run, [task.run for task in tasks], totals, "part")

    def _run(
        self, run: PreparedStudy, tasks: Sequence[Task], totals: Mapping[str, int], unit: str
    ) -> bool:
        if tasks:
            with display(run.title, totals, unit) as report:
                self._run_all(tasks, report)
        return bool(tasks)


@contextlib.contextmanager
def local_executor(options: Options) -> Iterator[LocalExecutor]:
    """An executor whose processes end with the block, as those of `worker_pool` do."""
    jobs = options.jobs or default_jobs(options.threads)
    with worker_pool(jobs, options.threads) as run_all:
        yield LocalExecutor(run_all)
