"""Thread-parallel map over files, with a progress bar."""

import concurrent.futures
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from deepjax.backend.cpu import cpu_count

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_map(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to all items with one thread per core; results in order.

    The first error cancels what has not begun.
    """
    pool = concurrent.futures.ThreadPoolExecutor(cpu_count())
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def progress(
    title: str, total: int, unit: str = "images", every: float = 10.0
) -> Iterator[Callable[[int], None]]:
    """Show progress by the yielded function: a bar on a terminal, else a line every `every` s.

    The function takes the number of new units, and is thread-safe.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(title, total=total)
            yield lambda count: bars.advance(task, count)
    else:
        yield _Lines(title, total, unit, every).advance


class _Lines:
    def __init__(self, title: str, total: int, unit: str, every: float) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.done, self.began, self.lock = 0, time.monotonic(), threading.Lock()
        self.last_line = self.began

    def advance(self, count: int) -> None:
        with self.lock:
            self.done += count
            now = time.monotonic()
            if now - self.last_line < self.every or not self.done:
                return
            self.last_line = now
            left = (now - self.began) * (self.total - self.done) / self.done
            done = f"{self.done:,} of {self.total:,} {self.unit}"
            line = f"{self.title}: {done}, {describe_time(left)} left"
        print(line, file=sys.stderr, flush=True)


def describe_time(seconds: float) -> str:
    """In words of one size.

    >>> describe_time(59), describe_time(150), describe_time(9000)
    ('59 s', '2 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
