"""Progress reporting: rich bars on a terminal, one plain line every 10 s otherwise."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol


def say_on_stderr(line: str) -> None:
    """Print a status line to stderr; ignore a closed or full stderr."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


class Report(Protocol):
    """The progress of a task: its name, units done, total units, and a note."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None: ...


@contextlib.contextmanager
def display(title: str, tasks: Mapping[str, int], unit: str = "step") -> Iterator[Report]:
    """Show the progress of named tasks (name -> total units), with their rate and time left."""
    if _is_terminal():
        with _live(title, tasks, unit) as report:
            yield report
    else:
        yield _plain(title, tasks, unit)


@contextlib.contextmanager
def counter(
    title: str, total: int, unit: str, every: float = 10.0
) -> Iterator[Callable[[int], None]]:
    """Show the progress of one task; gives a function that adds to the units done.

    Threads may share it. Off a terminal a task of less than `every` seconds prints nothing.
    """
    done, lock = 0, threading.Lock()
    with contextlib.ExitStack() as stack:
        if _is_terminal():
            report = stack.enter_context(_live(title, {title: total}, unit))
        else:
            report = _plain(title, {title: total}, unit, every, end=False)

        def advance(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                report(title, done, total)

        report(title, 0, total)
        yield advance


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


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
            pace.update(task, done, total)
            if task in rows:
                bars.update(rows[task], completed=done, total=total, note=note)
            beside = f", {note}" if note and not rows else ""
            note_of_all = f"{pace.describe(unit)}{beside}"
            bars.update(whole, completed=pace.done, total=pace.total, note=note_of_all)

        yield report


def _plain(
    title: str, tasks: Mapping[str, int], unit: str, every: float = 10.0, end: bool = True
) -> Report:
    """A line every so many seconds, and, with `end`, one at the end."""
    pace = _Pace(tasks)
    last = time.monotonic()

    def report(task: str, done: int, total: int, note: str = "") -> None:
        nonlocal last
        pace.update(task, done, total)
        now = time.monotonic()
        if now - last < every and not (end and pace.done >= pace.total):
            return
        last = now
        beside = f", {note}" if len(tasks) == 1 and note else ""
        say_on_stderr(f"{title}: {unit} {pace.done}/{pace.total}, {pace.describe(unit)}{beside}")

    return report


class _Pace:
    """Units per second since each task's first report, without compilation and resumed work."""

    def __init__(self, tasks: Mapping[str, int]) -> None:
        self._totals = dict(tasks)
        self._began: float | None = None
        self._at_first: dict[str, int] = {}
        self._now: dict[str, int] = {}

    @property
    def done(self) -> int:
        return sum(self._now.values())

    @property
    def total(self) -> int:
        return sum(self._totals.values())

    def update(self, task: str, done: int, total: int) -> None:
        if self._began is None:
            self._began = time.monotonic()
        self._at_first.setdefault(task, done)
        self._now[task] = max(done, self._now.get(task, 0))
        self._totals[task] = total  # which may grow, such as that of pilots on an extended grid

    def describe(self, unit: str) -> str:
        worked = self.done - sum(self._at_first.values())
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        if worked <= 0 or seconds < 1:
            return "starting"
        rate = worked / seconds
        return f"{rate:.1f} {unit}s/s, {format_duration((self.total - self.done) / rate)} left"


def format_duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {seconds} s"
        if minutes
        else f"{seconds} s"
    )
