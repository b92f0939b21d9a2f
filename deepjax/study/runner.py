"""Runs a study: trains what is missing, measures every seed, then judges and draws."""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.data import dataset_info
from deepjax.data.splits import check_opens
from deepjax.errors import unknown_name_error
from deepjax.paths import run_directory, user_path
from deepjax.progress import display
from deepjax.study.arms import Arm, collect, run_arm
from deepjax.study.conclude import conclude, print_verdicts
from deepjax.study.study import Options, Preset, SeedContext, Study, StudyResults, study_seeds
from deepjax.study.workers import RunAll, Task, TaskReport, default_jobs, worker_pool
from deepjax.training.distributed.launchers import require_one_process
from deepjax.training.loop import say_on_stderr
from deepjax.training.run_directory.config_file import init_run_dir, write_text
from deepjax.training.run_directory.numerics import claim_numerics
from deepjax.training.run_directory.run_lock import hold

PARTS = 100  # of one seed's measurement, in the progress display
# Options that do not change the results: a study resumes with others.
NOT_IDENTITY = {"output_dir", "jobs", "arm", "data_dir", "seeds", "reuse_runs_from"}


@dataclasses.dataclass(frozen=True)
class _Run:
    """A study with its options, preset and arms, and the directory that it works in."""

    study: Study
    options: Options
    preset: Preset
    arms: Mapping[str, Arm]
    out: Path


def run_study(study: Study, options: Options) -> None:
    """Run what is missing, judge, draw, and print the verdicts.

    Raises InputError for a data set or an arm that the study does not have.
    """
    began = time.monotonic()
    require_one_process(os.environ, "a study")
    enable_compilation_cache()
    if options.dataset not in study.presets:
        raise unknown_name_error("dataset", options.dataset, study.presets)
    preset = study.presets[options.dataset]
    preset = dataclasses.replace(preset, seeds=options.seeds or preset.seeds)
    default = Path("runs") / f"{study.name}-{options.dataset}"
    out = run_directory(options.output_dir or default, "output_dir")
    reuse = options.reuse_runs_from and user_path(options.reuse_runs_from, "reuse_runs_from")
    options = dataclasses.replace(options, output_dir=out, reuse_runs_from=reuse)
    arms = study.arms(options, preset)
    if options.arm and options.arm not in arms:
        raise unknown_name_error("arm", options.arm, arms)
    if any(collect(arm, out) is None for arm in arms.values()):
        # Where the data set is not prepared, this says what to do.
        check_opens(dataset_info(options.dataset), options.data_dir)
    # Several arms may run at a time, each with its own lock.
    locked = out / "runs" / options.arm if options.arm else out
    with hold(locked, say_on_stderr, one_process=True):
        claim_numerics(out)
        init_run_dir(out, _identity(study, options, preset))
        _run_locked(_Run(study, options, preset, arms, out), began)


def _run_locked(run: _Run, began: float) -> None:
    """Run and conclude, in a study directory that is locked."""
    options, preset, out = run.options, run.preset, run.out
    with worker_pool(options.jobs or default_jobs()) as run_all:
        ran = _train(run, run_all)
        if options.arm:
            print(
                f"arm {options.arm} is done in {out}; "
                "the same command without --arm concludes the study"
            )
            return
        ran = _measure(run, run_all) or ran
    seconds = _wall_seconds(out, time.monotonic() - began, ran)
    collected = {name: collect(run.arms[name], out) for name in sorted(run.arms)}
    arms = {name: result for name, result in collected.items() if result is not None}
    seeds = study_seeds(options, preset) if run.study.measure else ()
    measured = [json.loads(_measurement_path(out, seed).read_text()) for seed in seeds]
    results = StudyResults(options, preset, arms, measured, run.arms)
    results = conclude(run.study, results, out, seconds)
    if not ran:
        print("was done already; judged and plotted again from its logged rows")
    print_verdicts(results.verdicts)
    report = out / "report.html"
    print(f"\n{seconds:.0f} s in all. Read {report}; figures and result.json are next to it.")


def _identity(study: Study, options: Options, preset: Preset) -> Any:
    """What distinguishes two studies, stored as the study's config.json."""
    fields: dict[str, Any] = {"study": study.name}
    for field in dataclasses.fields(options):
        if field.name not in NOT_IDENTITY:
            fields[field.name] = getattr(options, field.name)
    fields |= {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    return dataclasses.make_dataclass("Identity", list(fields), frozen=True)(**fields)


def _train(run: _Run, run_all: RunAll) -> bool:
    """Train the arms whose runs are missing; whether there were any."""
    arms = [arm for arm in run.arms.values() if run.options.arm in ("", arm.name)]
    missing = [arm for arm in arms if collect(arm, run.out) is None]
    data_dir, reuse = run.options.data_dir, run.options.reuse_runs_from
    tasks = [
        functools.partial(run_arm, arm, run.out, data_dir, reuse_runs_from=reuse) for arm in missing
    ]
    return _run_tasks(run, tasks, run_all, {arm.name: arm.total_steps for arm in missing}, "step")


def _measure(run: _Run, run_all: RunAll) -> bool:
    """Measure the seeds that are missing; whether there were any."""
    if run.study.measure is None:
        return False
    tasks: dict[str, Task] = {}
    for seed in study_seeds(run.options, run.preset):
        if not _measurement_path(run.out, seed).exists():
            runs = {
                name: arm.run_dir(run.out, result.rate, seed)
                for name, arm in run.arms.items()
                if (result := collect(arm, run.out))
            }
            given = (run.options.dataset, run.preset, seed, runs, run.options.data_dir, run.out)
            tasks[f"seed {seed}"] = functools.partial(_measure_seed, run.study.measure, *given)
    return _run_tasks(run, list(tasks.values()), run_all, dict.fromkeys(tasks, PARTS), "part")


def _run_tasks(
    run: _Run, tasks: Sequence[Task], run_all: RunAll, totals: Mapping[str, int], unit: str
) -> bool:
    """Run tasks with a progress display; whether there were any. totals: units by task."""
    if tasks:
        with display(f"{run.study.name} on {run.options.dataset}", totals, unit) as report:
            run_all(tasks, report)
    return bool(tasks)


def _measure_seed(
    measure: Callable[[SeedContext], Mapping[str, Any]],
    dataset: str,
    preset: Preset,
    seed: int,
    runs: Mapping[str, Path],
    data_dir: str | None,
    out: Path,
    report: TaskReport,
) -> None:
    """In a worker: measure one seed and write its file."""

    def progress(done: int, total: int) -> None:
        report(f"seed {seed}", round(PARTS * done / total), PARTS)

    measured = measure(SeedContext(dataset, preset, seed, runs, data_dir, progress))
    write_text(_measurement_path(out, seed), json.dumps(measured) + "\n")
    progress(1, 1)


def _measurement_path(out: Path, seed: int) -> Path:
    return out / "measured" / f"seed{seed}.json"


def _wall_seconds(out: Path, now: float, ran: bool) -> float:
    """The wall time of this command if it ran something, else the recorded one."""
    path = out / "result.json"
    return now if ran or not path.exists() else float(json.loads(path.read_text())["wall_seconds"])
