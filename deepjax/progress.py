"""What people see of long work: live bars with rate and time left on a terminal, a plain line now and then elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Protocol


def say_on_stderr(line: str) -> None:
    """Print a status line to stderr; ignore a closed or full stderr."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


class Report(Protocol):
    """How far a task is: its name, units done, units in all, and what to say beside it."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None: ...


@contextlib.contextmanager
def display(title: str, tasks: Mapping[str, int], unit: str = "step") -> Iterator[Report]:
    """Show the progress of named tasks (name -> units in all) until the block ends; rate and time left are of all together."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _live(title, tasks, unit) as report:
            yield report
    else:
        yield _plain(title, tasks, unit)


@contextlib.contextmanager
def _live(title: str, tasks: Mapping[str, int], unit: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        "{task.description}",
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        "{task.fields[note]}",
    )
    pace = _Pace(tasks)
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        rows = {
            name: bars.add_task(f"  {name}", total=total, note="waiting")
            for name, total in tasks.items()
            if len(tasks) > 1
        }
        whole = bars.add_task(title, total=sum(tasks.values()), note="compiling")

        def report(task: str, done: int, total: int, note: str = "") -> None:
            pace.update(task, done)
            if task in rows:
                bars.update(rows[task], completed=done, total=total, note=note)
            bars.update(
                whole,
                completed=pace.done,
                note=f"{pace.describe(unit)}{'' if rows else ', ' + note}",
            )

        yield report


def _plain(title: str, tasks: Mapping[str, int], unit: str, every: float = 10.0) -> Report:
    pace = _Pace(tasks)
    last = time.monotonic()

    def report(task: str, done: int, total: int, note: str = "") -> None:
        nonlocal last
        pace.update(task, done)
        now = time.monotonic()
        if now - last < every and pace.done < pace.total:
            return
        last = now
        beside = f", {note}" if len(tasks) == 1 and note else ""
        with contextlib.suppress(
            OSError, ValueError
        ):  # a reader of stderr that has gone is no reason to stop
            print(
                f"{title}: {unit} {pace.done}/{pace.total}, {pace.describe(unit)}{beside}",
                file=sys.stderr,
                flush=True,
            )

    return report


class _Pace:
    """Units a second since each task's first report, so that neither compilation nor resumed work counts."""

    def __init__(self, tasks: Mapping[str, int]) -> None:
        self.total = sum(tasks.values())
        self._began: float | None = None
        self._at_first: dict[str, int] = {}
        self._now: dict[str, int] = {}

    @property
    def done(self) -> int:
        return sum(self._now.values())

    def update(self, task: str, done: int) -> None:
        if self._began is None:
            self._began = time.monotonic()
        self._at_first.setdefault(task, done)
        self._now[task] = max(done, self._now.get(task, 0))

    def describe(self, unit: str) -> str:
        worked = self.done - sum(self._at_first.values())
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        if worked <= 0 or seconds < 1:
            return "starting"
        rate = worked / seconds
        return f"{rate:.1f} {unit}s/s, {_duration((self.total - self.done) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {seconds} s"
        if minutes
        else f"{seconds} s"
    )
