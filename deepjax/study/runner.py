"""Runs a study: trains what is missing, measures every seed, then judges; or its pilots."""

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
from deepjax.errors import InputError, unknown_name_error
from deepjax.io import write_text
from deepjax.paths import run_directory, user_path
from deepjax.progress import display
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.rates import SelectedRate, packaged_rates, read_rates
from deepjax.study.arms.runs import collect, diverged, run_arm
from deepjax.study.claim import Claim
from deepjax.study.conclude import conclude, print_verdicts
from deepjax.study.pilots.record import print_pilots, select_rates, write_record
from deepjax.study.pilots.sweep import missing_rates, run_pilots
from deepjax.study.preregistration import record_rules
from deepjax.study.preset import Preset
from deepjax.study.results import StudyResults
from deepjax.study.stats.intervals import PILOT_SEEDS
from deepjax.study.study import (
    Options,
    SeedContext,
    Study,
    has_pilots,
    pilot_arms,
    pilot_grid,
    study_seeds,
    trained_arms,
)
from deepjax.study.workers import RunAll, Task, TaskReport, default_jobs, worker_pool
from deepjax.training.distributed.launchers import require_one_process
from deepjax.training.loop import say_on_stderr
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.numerics import claim_numerics
from deepjax.training.run_directory.run_lock import hold

PARTS = 100  # of one seed's measurement, in the progress display
SECONDS = "seconds.json"  # wall time of all commands that ran something


@dataclasses.dataclass(frozen=True)
class _Run:
    """A study with its options, preset and arms, and the directory that it works in."""

    study: Study
    options: Options
    preset: Preset
    arms: Mapping[str, TrainedArm]
    out: Path

    @property
    def seeds(self) -> tuple[int, ...]:
        return study_seeds(self.preset, self.options.pilots)


def run_study(study: Study, options: Options) -> None:
    """Run what is missing, judge, draw, and print the verdicts; or run the pilots.

    Raises InputError for a preset or an arm that the study does not have.
    """
    began = time.monotonic()
    require_one_process(os.environ, "a study")
    enable_compilation_cache()
    run = _prepared(study, options)
    if run.options.arm and run.options.arm not in run.arms:
        raise unknown_name_error("arm", run.options.arm, run.arms)
    for dataset in sorted({arm.config.dataset for arm in run.arms.values()} | {run.preset.dataset}):
        # Where a data set is not prepared, this says what to do.
        check_opens(dataset_info(dataset), options.data_dir)
    # Several arms may run at a time, each with its own lock.
    locked = run.out / "runs" / run.options.arm if run.options.arm else run.out
    with hold(locked, say_on_stderr, one_process=True):
        claim_numerics(run.out)
        init_run_dir(run.out, _identity(run))
        if options.pilots:
            _run_pilots(run, began)
        else:
            _run_judged(run, began)


def _prepared(study: Study, options: Options) -> _Run:
    """The run with its paths, and with the seeds and arms of pilots where these are asked for."""
    if options.preset not in study.presets:
        raise unknown_name_error("preset", options.preset, study.presets)
    preset = study.presets[options.preset]
    name = f"{study.name}-{options.preset}" + ("-pilots" if options.pilots else "")
    out = run_directory(options.output_dir or Path("runs") / name, "output_dir")
    reuse = options.reuse_runs_from and user_path(options.reuse_runs_from, "reuse_runs_from")
    options = dataclasses.replace(options, output_dir=out, reuse_runs_from=reuse)
    preset = dataclasses.replace(preset, seeds=options.seeds or preset.seeds)
    if not options.pilots:
        rates = _rates(study, options, preset)
        return _Run(study, options, preset, trained_arms(study, preset, rates), out)
    if not has_pilots(study, preset):
        raise InputError(f"{study.name} has no pilots in preset {options.preset!r}")
    return _Run(study, options, preset, pilot_arms(study, preset), out)


def _rates(study: Study, options: Options, preset: Preset) -> Mapping[str, SelectedRate]:
    if options.rates:
        return read_rates(user_path(options.rates, "rates"))
    return packaged_rates(preset.pilots or study.name, options.preset)


def _run_judged(run: _Run, began: float) -> None:
    """Run and conclude, in a study directory that is locked."""
    options, out = run.options, run.out
    if run.preset.judged:
        record_rules(run.study, run.preset, out)
    with worker_pool(options.jobs or default_jobs(options.threads), options.threads) as run_all:
        ran = _train(run, run_all)
        if options.arm:
            print(
                f"arm {options.arm} is done in {out}; "
                "the same command without --arm concludes the study"
            )
            return
        ran = _measure(run, run_all) or ran
    seconds = _wall_seconds(out, time.monotonic() - began, ran)
    results = conclude(run.study, options.preset, _results(run), out, seconds)
    if not ran and (run.arms or run.study.measure):
        print("was done already; judged and plotted again from its logged rows")
    print_verdicts(results.verdicts)
    report = out / "report.html"
    print(f"\n{seconds:.0f} s in all. Read {report}; figures and result.json are next to it.")


def _results(run: _Run) -> StudyResults:
    """The results of finished runs and measurements."""
    collected = {name: collect(arm, run.out) for name, arm in run.arms.items()}
    arms = {name: result for name, result in collected.items() if result is not None}
    paths = [_measurement_path(run.out, seed) for seed in run.seeds if run.study.measure]
    measured = [json.loads(path.read_text()) if path.exists() else None for path in paths]
    return StudyResults(run.preset, run.seeds, arms, measured, run.arms)


def _run_pilots(run: _Run, began: float) -> None:
    """Select the rates, then run the whole study on the pilots' seeds, which promise its power.

    In a directory that is locked.
    """
    options, out = run.options, run.out
    with worker_pool(options.jobs or default_jobs(options.threads), options.threads) as run_all:
        ran = _sweep(run, run_all)
        rates = select_rates(run.study, options.preset, run.preset, run.arms, out)
        arms = trained_arms(
            run.study, run.preset, rates or _rates(run.study, options, run.preset), pilots=True
        )
        rehearsal = dataclasses.replace(run, arms=arms)
        ran = _train(rehearsal, run_all) or ran
        ran = _measure(rehearsal, run_all) or ran
    seconds = _wall_seconds(out, time.monotonic() - began, ran)
    results = _results(rehearsal)
    record = write_record(run.study, options.preset, rates, run.arms, results, out, seconds)
    print_pilots(rates, record["power"])


def _sweep(run: _Run, run_all: RunAll) -> bool:
    """Train the pilots that are missing; whether there were any."""
    out, options = run.out, run.options
    grids = {name: pilot_grid(run.preset, name) for name in run.arms}
    missing = [arm for name, arm in run.arms.items() if missing_rates(arm, grids[name], out)]
    tasks = [
        functools.partial(
            run_pilots,
            arm,
            grids[arm.name],
            out,
            options.data_dir,
            reuse_runs_from=options.reuse_runs_from,
        )
        for arm in missing
    ]
    totals = {arm.name: len(grids[arm.name]) * arm.total_steps for arm in missing}
    return _run_tasks(run, tasks, run_all, totals, "step")


def _identity(run: _Run) -> Any:
    """What distinguishes two studies, stored as the study's config.json."""
    fields: dict[str, Any] = {
        "study": run.study.name,
        "preset": run.options.preset,
        "pilots": run.options.pilots,
        "threads": run.options.threads,
        "dataset": run.preset.dataset,
        "seeds": PILOT_SEEDS if run.options.pilots else run.preset.seeds,
        "training": dict(run.preset.training),
        "sizes": dict(run.preset.sizes),
    }
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
    """Measure the seeds that are missing; whether there were any.

    A seed is left out where a run that is measured has diverged.
    """
    if run.study.measure is None:
        return False
    opened = {arm for each in run.study.claims if isinstance(each, Claim) for arm in each.measures}
    tasks: dict[str, Task] = {}
    for i, seed in enumerate(run.seeds):
        runs = {name: arm.run_dirs(run.out)[i] for name, arm in run.arms.items()}
        if not _measurement_path(run.out, seed).exists() and not any(
            diverged(path) for name, path in runs.items() if name in opened
        ):
            given = (run.preset.dataset, run.preset, seed, runs, run.options.data_dir, run.out)
            tasks[f"seed {seed}"] = functools.partial(_measure_seed, run.study.measure, *given)
    return _run_tasks(run, list(tasks.values()), run_all, dict.fromkeys(tasks, PARTS), "part")


def _run_tasks(
    run: _Run, tasks: Sequence[Task], run_all: RunAll, totals: Mapping[str, int], unit: str
) -> bool:
    """Run tasks with a progress display; whether there were any. totals: units by task."""
    if tasks:
        what = "pilots of " * run.options.pilots + run.study.name
        with display(f"{what} on {run.preset.dataset}", totals, unit) as report:
            run_all(tasks, report)
    return bool(tasks)


def _measure_seed(
    measure: Callable[[SeedContext], Mapping[str, Any] | None],
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
    """The wall time of all commands that ran something, this one included if it did."""
    path = out / SECONDS
    before = float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0
    if ran or not path.exists():
        before += now
        write_text(path, json.dumps({"seconds": before}) + "\n")
    return before
