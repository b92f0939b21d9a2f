"""Work shared out to processes: each takes tasks from one queue, with one thread, so that the cores of a machine change no bit."""

import contextlib
import functools
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deepjax.errors import InputError, NonFiniteError, Stopped
from deepjax.training.compilations import keep_compilations

TaskReport = Callable[[str, int, int], None]  # (task, units done, units in all)
ENDED = "ended"  # in place of progress
Task = Callable[[TaskReport], None]  # picklable: a partial of a function of a module


def default_jobs() -> int:
    """One process a core on a machine of CPUs; one in all where an accelerator is, which a process would have to itself."""
    accelerators = any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev").glob("accel*"))
    if accelerators and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def crew(jobs: int) -> Iterator[Callable[[Sequence[Task], TaskReport], None]]:
    """Gives a function that runs every task in up to `jobs` processes, in order, and raises the first error of any of them.

    The processes start with the first tasks and stay for the next ones, which find libraries loaded and programs compiled. They
    take tasks from one queue, so a process that is done early takes the next. Leaving early, by an error or a signal, stops them,
    each after saving what it saves.
    """
    context = multiprocessing.get_context("spawn")
    waiting, messages = context.SimpleQueue(), context.Queue()
    workers: list[Any] = []

    def run(tasks: Sequence[Task], report: TaskReport) -> None:
        with _one_thread_each():
            while len(workers) < min(jobs, len(tasks)):
                workers.append(context.Process(target=_work, args=(waiting, messages), daemon=True))
                workers[-1].start()
        for task in tasks:  # after the start: a full pipe would wait for its readers
            waiting.put(task)
        left = len(tasks)
        while left:
            left -= _hear(messages, report)
            for worker in workers:
                if worker.exitcode is not None:
                    _hear(messages, report)
                    raise RuntimeError(f"a process of the study died (exit {worker.exitcode}); its message stands above")

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield run
        for _ in workers:
            waiting.put(None)
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        for worker in workers:
            worker.join(timeout=60)
        signal.signal(signal.SIGTERM, before)


def _stop(*_: object) -> None:
    raise Stopped("stopped by SIGTERM; what was running saved its step; the same command carries on")


def _hear(messages: Any, report: TaskReport) -> int:
    """One message of the workers, if one comes within a moment: progress is handed on, an error raised. 1 for the end of a task."""
    try:
        message = messages.get(timeout=0.3)
    except queue.Empty:
        return 0
    if isinstance(message, Exception):
        raise message
    if message == ENDED:
        return 1
    report(*message)
    return 0


def _work(waiting: Any, messages: Any) -> None:
    """The life of a worker: tasks from the queue until it is told that there are no more."""
    keep_compilations()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the workers in order
    try:
        while (task := waiting.get()) is not None:
            task(functools.partial(_tell, messages))
            messages.put(ENDED)
    except (InputError, NonFiniteError) as error:
        messages.put(error)
    except Stopped:
        pass


def _tell(messages: Any, *progress: Any) -> None:
    messages.put(progress)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers started inside compute with one thread each, on large pages of memory where the C library is glibc.

    The work is then shared without waiting, and the number of cores changes no bit of the result: XLA:CPU sums in another order
    for another number of threads. It also asks the system for all of a step's memory anew at every step: with pages of 4 kB a step
    of 56 layers on the digits takes 151 ms, with large ones 128 ms.
    """
    names = {"NPROC": "1", "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES") or "glibc.malloc.hugetlb=1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
