"""`deepjax runs watch RUN`: a line for each epoch of a run that another process trains."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from deepjax.errors import require
from deepjax.paths import run_directory
from deepjax.progress import format_duration
from deepjax.training.metrics.writer import Row
from deepjax.training.run_directory.run_summary import RunSummary, summarize_run
from deepjax.training.run_directory.starts import Start, read_starts


@dataclasses.dataclass(frozen=True)
class Options:
    """Print a line for each epoch of a run until it ends; Ctrl-C ends the watching only."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --output-dir folder of a training run."""
    interval: float = 5.0
    """Seconds between two looks."""


def watch(options: Options) -> None:
    """Print the epochs that are done, and every further one; returns when no process trains."""
    require(options.interval > 0, "interval", options.interval, "above 0 seconds")
    path = run_directory(options.run, "run")
    run, shown = summarize_run(path), 0
    print(f"{run.config.model} on {run.config.dataset}, {run.total_steps:,} steps, {path}")
    while True:
        for row in run.epochs[shown:]:
            print(describe_epoch(run, row, read_starts(path)), flush=True)
        shown = len(run.epochs)
        if run.state != "running":
            print(describe_end(run))
            return
        time.sleep(options.interval)
        run = summarize_run(path)


def describe_epoch(run: RunSummary, row: Row, starts: Sequence[Start]) -> str:
    """The row of an epoch in one line, with the time left at the pace of its process."""
    parts = [
        f"epoch {row['epoch']:g}",
        f"step {row['step']:,} of {run.total_steps:,}",
        f"running error {100 * row['running_error']:.2f} %",
        f"test error {100 * row['test_error']:.2f} %",
    ]
    began = [start["step"] for start in starts if start["step"] < row["step"]]
    if began and row["seconds"] and row["step"] < run.total_steps:
        pace = row["seconds"] / (row["step"] - began[-1])  # both from the start of the process
        parts.append(f"{format_duration(pace * (run.total_steps - row['step']))} left")
    return ", ".join(parts)


def describe_end(run: RunSummary) -> str:
    """Why there is nothing more to watch."""
    if run.state == "done":
        train, test = (run.rows[-1][entry] for entry in ("train_error", "test_error"))
        return f"done: train error {100 * train:.2f} %, test error {100 * test:.2f} %"
    if run.state == "halted":
        return "halted on non-finite values; see its last row in metrics.jsonl"
    if run.state == "average":
        return "an average of checkpoints, which is not trained"
    return (
        f"no process trains in it; it stopped after step {run.step:,}, and the command that began "
        "it resumes it"
    )
