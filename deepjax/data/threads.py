"""Thread-parallel map over files, with a progress bar."""

import concurrent.futures
import contextlib
import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

from deepjax.backend.cpu import cpu_count
from deepjax.progress import counter

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_AT_A_TIME = 256  # items of a task; a task for each of a million files would take long


def thread_map(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to all items with one thread per core; results in order.

    The first error cancels what has not begun.
    """
    everything, threads = list(items), cpu_count()
    at_a_time = min(MOST_AT_A_TIME, max(1, len(everything) // (8 * threads)))
    starts = range(0, len(everything), at_a_time)

    def several(start: int) -> list[Result]:
        return [function(item) for item in everything[start : start + at_a_time]]

    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        return list(itertools.chain.from_iterable(pool.map(several, starts)))
    finally:
        pool.shutdown(cancel_futures=True)


def progress(
    title: str, total: int, unit: str = "images", every: float = 10.0
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """Show progress by the yielded function: a bar on a terminal, else a line every `every` s.

    The function takes the number of new units, and is thread-safe.
    """
    return counter(title, total, unit.removesuffix("s"), every)
