"""Runs a study: trains what is missing, measures every seed, then judges; or its pilots."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Protocol

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.data import dataset_info
from deepjax.data.splits import check_opens
from deepjax.io import write_text
from deepjax.study.arms.runs import collect
from deepjax.study.conclude import conclude, print_verdicts
from deepjax.study.executors.cluster import (
    SlurmExecutor,
    chosen_tasks,
    print_manifest,
    run_tasks,
)
from deepjax.study.executors.local import local_executor
from deepjax.study.measurement import measurement_path
from deepjax.study.pilots.record import print_pilots, select_rates, write_record
from deepjax.study.prepared import PreparedStudy, prepare, rehearsal
from deepjax.study.preregistration import record_rules
from deepjax.study.results import StudyResults
from deepjax.study.study import Options, Study
from deepjax.study.workers import worker_environment
from deepjax.training.distributed.launchers import require_one_process
from deepjax.training.loop import say_on_stderr
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.numerics import claim_numerics
from deepjax.training.run_directory.run_lock import hold
from deepjax.training.run_directory.starts import read_starts

SECONDS = "seconds.json"  # wall time of all commands that ran something


def run_study(study: Study, options: Options) -> None:
    """Run what is missing, judge, draw, and print the verdicts; or run the pilots, or one task.

    Raises InputError for a preset, an arm or a task that the study does not have.
    """
    began = time.monotonic()
    require_one_process(os.environ, "a study")
    if options.executor == "kubernetes":
        print_manifest(study, options)
        return
    if options.task:  # before JAX starts its threads
        os.environ.update(worker_environment(options.threads))
    enable_compilation_cache()
    run = prepare(study, options)
    for dataset in sorted({arm.config.dataset for arm in run.arms.values()} | {run.preset.dataset}):
        # Where a data set is not prepared, this says what to do.
        check_opens(dataset_info(dataset), options.data_dir)
    if options.task:
        tasks = chosen_tasks(run)
        _claim(run)
        run_tasks(run, tasks)
        return
    chosen = _executor(run)  # invalid options leave nothing
    # Several arms may run at a time, each with its own lock.
    locked = run.out / "runs" / run.options.arm if run.options.arm else run.out
    with hold(locked, say_on_stderr, one_process=True):
        _claim(run)
        with chosen as executor:
            if options.pilots:
                _run_pilots(run, executor, began)
            else:
                _run_judged(run, executor, began)


def _claim(run: PreparedStudy) -> None:
    """Make the study directory, or check that it is of this study with these settings of JAX."""
    claim_numerics(run.out)
    init_run_dir(run.out, run.identity())
    if run.preset.judged and not run.options.pilots:
        record_rules(run.study, run.preset, run.out)


class _Executor(Protocol):
    """Where the parts of a study run. Each method says whether anything was missing."""

    def train(self, run: PreparedStudy) -> bool: ...
    def sweep(self, run: PreparedStudy) -> bool: ...
    def measure(self, run: PreparedStudy) -> bool: ...


def _executor(run: PreparedStudy) -> contextlib.AbstractContextManager[_Executor]:
    if run.options.executor == "slurm":
        return contextlib.nullcontext(SlurmExecutor(run))
    return local_executor(run.options)


def _run_judged(run: PreparedStudy, executor: _Executor, began: float) -> None:
    """Run and conclude, in a study directory that is locked."""
    options, out = run.options, run.out
    ran = executor.train(run)
    if options.arm:
        print(
            f"arm {options.arm} is done in {out}; "
            "the same command without --arm concludes the study"
        )
        return
    ran = executor.measure(run) or ran
    seconds = _wall_seconds(out, time.monotonic() - began, ran)
    results = conclude(run.study, options.preset, _results(run), out, seconds, _hardware(run))
    if not ran and (run.arms or run.study.measure):
        print("was done already; judged and plotted again from its logged rows")
    print_verdicts(results.verdicts)
    report = out / "report.html"
    print(f"\n{seconds:.0f} s in all. Read {report}; figures and result.json are next to it.")


def _results(run: PreparedStudy) -> StudyResults:
    """The results of finished runs and measurements."""
    collected = {name: collect(arm, run.out) for name, arm in run.arms.items()}
    arms = {name: result for name, result in collected.items() if result is not None}
    paths = [measurement_path(run.out, seed) for seed in run.seeds if run.study.measure]
    measured = [json.loads(path.read_text()) if path.exists() else None for path in paths]
    return StudyResults(run.preset, run.seeds, arms, measured, run.arms)


def _run_pilots(run: PreparedStudy, executor: _Executor, began: float) -> None:
    """Select the rates, then run the whole study on the pilots' seeds, which promise its power.

    In a directory that is locked.
    """
    options, out = run.options, run.out
    ran = executor.sweep(run)
    rates = select_rates(run.study, options.preset, run.preset, run.arms, out)
    judged = rehearsal(run, rates)
    ran = executor.train(judged) or ran
    ran = executor.measure(judged) or ran
    seconds = _wall_seconds(out, time.monotonic() - began, ran)
    results, hardware = _results(judged), _hardware(judged)
    record = write_record(
        run.study, options.preset, rates, run.arms, results, out, seconds, hardware
    )
    print_pilots(rates, record["power"])


def _hardware(run: PreparedStudy) -> str:
    """The hardware of jobs on a cluster, as their runs recorded it; "" for this machine's."""
    if run.options.executor == "local":
        return ""
    run_dirs = [path for arm in run.arms.values() for path in arm.run_dirs(run.out)]
    found = {str(start["hardware"]) for path in run_dirs for start in read_starts(path)[-1:]}
    return " and ".join(sorted(found))


def _wall_seconds(out: Path, now: float, ran: bool) -> float:
    """The wall time of all commands that ran something, this one included if it did."""
    path = out / SECONDS
    before = float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0
    if ran or not path.exists():
        before += now
        write_text(path, json.dumps({"seconds": before}) + "\n")
    return before
