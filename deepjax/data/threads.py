"""Thread-parallel map over files, with a progress bar."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable
from typing import TypeVar

from deepjax.backend.cpu import cpu_count
from deepjax.progress import counter

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


def progress(
    title: str, total: int, unit: str = "images", every: float = 10.0
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """Show progress by the yielded function: a bar on a terminal, else a line every `every` s.

    The function takes the number of new units, and is thread-safe.
    """
    return counter(title, total, unit.removesuffix("s"), every)
