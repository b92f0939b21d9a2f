"""Work shared out to processes: each takes tasks from one queue, with one thread, so that the cores of a machine change no bit."""

import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.errors import InputError, NonFiniteError, Stopped, require_devices
from deepjax.training.preemption import free_stop_signals, handling

TaskReport = Callable[[str, int, int], None]  # (task, units done, units in all)
Task = Callable[[TaskReport], None]  # picklable: a partial of a function of a module
RunAll = Callable[[Sequence[Task], TaskReport], None]
ENDED = "ended"  # in place of progress
ERROR_GRACE_SECONDS = 10.0  # seconds in which an error that a process left behind is looked for, while others go on talking


def default_jobs() -> int:
    """One process a core on a machine of CPUs; one in all where an accelerator is, which a process would have to itself."""
    accelerators = any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev").glob("accel*"))
    if accelerators and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def worker_pool(jobs: int) -> Iterator[RunAll]:
    """Gives a function that runs every task in up to `jobs` processes, in order, and raises the first error of any of them.

    The processes start with the first tasks and stay for the next ones, which find libraries loaded and programs compiled. They
    take tasks from one queue, so a process that is done early takes the next. Leaving early, by an error or a signal, stops them,
    each after saving what it saves; after an error leave the block, for tasks may be left in the queue.
    """
    context = multiprocessing.get_context("spawn")
    waiting, messages = context.SimpleQueue(), context.Queue()
    workers: list[Any] = []

    def run(tasks: Sequence[Task], report: TaskReport) -> None:
        with _one_thread_each():
            while len(workers) < min(jobs, len(tasks)):
                worker = context.Process(target=_work, args=(waiting, messages), daemon=True)
                worker.start()
                workers.append(worker)
        for task in tasks:  # after the start: a full pipe would wait for its readers
            waiting.put(task)
        left = len(tasks)
        while left:
            ended = [worker.exitcode for worker in workers if worker.exitcode is not None]
            until = time.monotonic() + (ERROR_GRACE_SECONDS if ended else 0.0)
            while (heard := _hear(messages, report)) is not None:
                left -= heard
                if time.monotonic() > until:
                    break
            if ended and left:
                raise RuntimeError(
                    f"a process of the study {_how(ended[0])}; the same command carries on"
                )

    with handling(dict.fromkeys(free_stop_signals(), _stop)):
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
                worker.kill()


def _how(exitcode: int) -> str:
    if exitcode < 0:
        return f"was killed by signal {-exitcode} (by 9, the system does so where memory ends: try fewer --jobs)"
    return f"died (exit {exitcode}); its message stands above" if exitcode else "was stopped"


def _stop(number: int, *_: object) -> None:
    raise Stopped(
        f"stopped by {signal.Signals(number).name}; what was running saved its step; the same command carries on"
    )


def _hear(messages: Any, report: TaskReport) -> int | None:
    """One message of the workers: progress is handed on, an error raised. 1 for a task's end; None where none comes in time."""
    try:
        message = messages.get(timeout=0.3)
    except queue.Empty:
        return None
    if isinstance(message, Exception):
        raise message
    if message == ENDED:
        return 1
    report(*message)
    return 0


def _work(waiting: Any, messages: Any) -> None:
    """The life of a worker: tasks from the queue until it is told that there are no more."""
    threading.Thread(target=_end_with_parent, args=(messages,), daemon=True).start()
    enable_compilation_cache()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the parent, which stops the workers in order
    try:
        require_devices()
        while (task := waiting.get()) is not None:
            task(functools.partial(_tell, messages))
            messages.put(ENDED)
    except (InputError, NonFiniteError) as error:
        messages.put(error)
    except Stopped:
        pass


def _end_with_parent(messages: Any) -> None:
    """Stop when the study was killed, which tells its processes nothing: training saves and ends, and who waits ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        messages.cancel_join_thread()  # nobody hears them
        os.kill(os.getpid(), signal.SIGTERM)


def _tell(messages: Any, *progress: Any) -> None:
    messages.put(progress)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers started inside compute with one thread each, on large pages of memory where the C library is glibc.

    The work is then shared without waiting, and the number of cores changes no bit of the result: XLA:CPU sums in another order
    for another number of threads. It also asks the system for all of a step's memory anew at every step: with pages of 4 kB a step
    of 56 layers on the digits takes 151 ms, with large ones 128 ms.
    """
    names = {
        "NPROC": "1",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES") or "glibc.malloc.hugetlb=1",
    }
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
