"""`deepjax runs watch RUN`: epochs, incidents and steps of a run that another process trains."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from deepjax.errors import require
from deepjax.progress import format_duration
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.metrics.writer import Row
from deepjax.training.run_directory.progress_file import read_progress
from deepjax.training.run_directory.run_summary import RunSummary, summarize_run
from deepjax.training.run_directory.starts import Start, read_starts

CLEAR_LINE = "\r\x1b[2K"


@dataclasses.dataclass(frozen=True)
class Options:
    """Show a run until it ends: each epoch, skipped steps, and on a terminal the step it is at.

    Ctrl-C ends the watching only.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --output-dir folder of a training run."""
    interval: float = 5.0
    """Seconds between two looks."""


def watch(options: Options) -> None:
    """Print what is logged, and every further row; returns when no process trains."""
    require(options.interval > 0, "interval", options.interval, "above 0 seconds")
    path = local_run(options.run, "run", checkpoints=False)
    run = summarize_run(path)
    shown: list[Row] = []
    terminal = sys.stdout.isatty()
    print(f"{run.config.model} on {run.config.dataset}, {run.total_steps:,} steps, {path}")
    while True:
        lines = [describe_row(run, row, read_starts(path)) for row in _new_rows(shown, run.rows)]
        shown = run.rows
        if terminal:
            print(CLEAR_LINE, end="")
        for line in filter(None, lines):
            print(line, flush=True)
        if run.state != "running":
            print(describe_end(run))
            return
        if terminal:
            print(describe_progress(run, read_progress(path)), end="", flush=True)
        time.sleep(options.interval)
        run = summarize_run(local_run(options.run, "run", checkpoints=False))


def _new_rows(shown: Sequence[Row], rows: Sequence[Row]) -> Sequence[Row]:
    """The rows after those that were shown; a rollback drops rows."""
    pairs = enumerate(zip(shown, rows, strict=False))
    same = next((i for i, (old, new) in pairs if old != new), min(len(shown), len(rows)))
    return rows[same:]


def describe_row(run: RunSummary, row: Row, starts: Sequence[Start]) -> str:
    """An epoch or an incident in one line; "" for other rows."""
    kind, step = row["kind"], row["step"]
    if kind == "epoch":
        return describe_epoch(run, row, starts)
    if kind == "skipped":
        return f"step {step:,} was skipped: not finite, or a spike"
    if kind == "rollback":
        return f"step {row['bad_step']:,} was bad; back to step {step:,}"
    if kind == "damaged":
        return f"step {step:,}: {row['image']} cannot be decoded ({row['why']})"
    return ""


def describe_progress(run: RunSummary, progress: Mapping[str, Any] | None) -> str:
    """Where a running training is, in one line without its end."""
    if progress is None or progress["step"] < run.step:
        return (
            f"step {run.step:,} of {run.total_steps:,}"
            if run.step
            else "preparing: compiling, reading data"
        )
    fraction = progress["step"] / run.total_steps
    left = format_duration(progress["seconds_left"])
    return (
        f"step {progress['step']:,} of {run.total_steps:,} ({fraction:.0%}), {progress['note']}, "
        f"{left} left"
    )


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
        return f"halted on non-finite values at step {run.rows[-1]['step']:,}"
    if run.state == "average":
        return "an average of checkpoints, which is not trained"
    return (
        f"no process trains in it; it stopped after step {run.step:,}, and the command that began "
        "it resumes it"
    )
