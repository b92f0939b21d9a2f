"""A pool of worker processes with a fixed number of threads each, fed from one queue.

One thread each by default, so that results do not depend on the number of cores.

`concurrent.futures.ProcessPoolExecutor` with an initializer does not fit: it hands out one task
more than it has processes, so that a stopped pool would begin another training; it cannot
terminate its processes before Python 3.14 (they save on SIGTERM); and its BrokenProcessPool does
not say by which signal a process died. submitit's local executor starts a process for each task and
any number of them at a time: six short runs and two measurements took 117 s two at a time, and 18 s
here.
"""

import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.errors import InputError, NonFiniteError, Stopped, require_devices
from deepjax.training.preemption import free_stop_signals, handling

TaskReport = Callable[[str, int, int], None]  # (task, units done, total)
Task = Callable[[TaskReport], None]  # picklable: a partial of a module-level function
RunAll = Callable[[Sequence[Task], TaskReport], None]
ENDED = "ended"  # message of a finished task, in place of progress
# After a process died: how long its last error is looked for behind the messages of others.
ERROR_GRACE_SECONDS = 10.0


def default_jobs(threads: int = 1) -> int:
    """One process for every `threads` cores; one in all on an accelerator, which it reserves."""
    accelerators = any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev").glob("accel*"))
    if accelerators and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        return 1
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // threads)


@contextlib.contextmanager
def worker_pool(jobs: int, threads: int = 1) -> Iterator[RunAll]:
    """Yield a function that runs tasks in order in up to `jobs` processes and raises their error.

    The processes start with the first tasks and are kept for the next ones, with libraries loaded
    and programs compiled. A process that is done takes the next task from the queue. Leaving the
    block by an error or a signal stops them with SIGTERM, on which a training saves. After an error
    leave the block, since tasks may remain in the queue.
    """
    context = multiprocessing.get_context("spawn")
    waiting, messages = context.SimpleQueue(), context.Queue()
    workers: list[Any] = []

    def run(tasks: Sequence[Task], report: TaskReport) -> None:
        with _environment(worker_environment(threads)):
            while len(workers) < min(jobs, len(tasks)):
                worker = context.Process(target=_work, args=(waiting, messages), daemon=True)
                worker.start()
                workers.append(worker)
        # After the start of the workers: a full pipe would block without a reader.
        for task in tasks:
            waiting.put(task)
        left = len(tasks)
        while left:
            ended = [worker.exitcode for worker in workers if worker.exitcode is not None]
            until = time.monotonic() + (ERROR_GRACE_SECONDS if ended else 0.0)
            while (finished := _handle_message(messages, report)) is not None:
                left -= finished
                if time.monotonic() > until:
                    break
            if ended and left:
                raise RuntimeError(
                    f"a process of the study {_how_it_ended(ended[0])}; the same command resumes"
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


def _how_it_ended(exitcode: int) -> str:
    if exitcode < 0:
        hint = "9: the system does this when memory runs out; try fewer --jobs"
        return f"was killed by signal {-exitcode} ({hint})"
    return f"died (exit {exitcode}); its message is above" if exitcode else "was stopped"


def _stop(number: int, *_: object) -> None:
    name = signal.Signals(number).name
    raise Stopped(f"stopped by {name}; running trainings were saved; the same command resumes")


def _handle_message(messages: Any, report: TaskReport) -> int | None:
    """Handle one message of the workers: report progress, raise an error.

    Returns the number of finished tasks, 0 or 1; None if no message comes in time.
    """
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
    """The main function of a worker: run tasks from the queue until it is None."""
    threading.Thread(target=_end_with_parent, args=(messages,), daemon=True).start()
    enable_compilation_cache()
    # Ctrl-C reaches the parent too, which stops the workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        require_devices()
        while (task := waiting.get()) is not None:
            task(functools.partial(_report, messages))
            messages.put(ENDED)
    except (InputError, NonFiniteError) as error:
        messages.put(error)
    except Stopped:
        pass


def _end_with_parent(messages: Any) -> None:
    """Terminate when the parent dies: on SIGTERM a training saves and exits, an idle one exits."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        messages.cancel_join_thread()  # there is no reader any more
        os.kill(os.getpid(), signal.SIGTERM)


def _report(messages: Any, *progress: Any) -> None:
    messages.put(progress)


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of a process that computes with so many threads, with glibc on huge pages.

    XLA:CPU sums in another order with another number of threads, so that results would depend on
    the number of cores. It also allocates a step's memory anew at every step: with pages of 4 kB a
    step of 56 layers on the digits takes 151 ms, with huge ones 128 ms.
    """
    return {
        "NPROC": str(threads),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES") or "glibc.malloc.hugetlb=1",
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started in this block have these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
