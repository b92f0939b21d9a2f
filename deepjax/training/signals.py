"""What may end a run from outside: SIGTERM, on which all processes agree, and a step that never ends."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_HUNG = 75  # EX_TEMPFAIL: worth trying again


class Stopping:
    """Whether SIGTERM has arrived, at this process or another; asked once a step and once a batch of evaluation, everywhere."""

    def __init__(self) -> None:
        """Not yet asked to stop."""
        self._here = False
        self._agreed = False
        self._asked = 0

    def note(self, *_: object) -> None:
        """The signal's handler."""
        self._here = True

    def __call__(self) -> bool:
        """Whether to stop; every process must ask equally often, and all get the same answer."""
        if jax.process_count() == 1:
            return self._here
        self._asked += 1  # jax's own handler notes the signal, and tells every process after which question to stop
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(self._asked)
        return self._agreed


@contextlib.contextmanager
def sigterm() -> Iterator[Stopping]:
    """Listen to SIGTERM; only the main thread can, and among several processes jax.distributed does already."""
    stopping = Stopping()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = signal.signal(signal.SIGTERM, stopping.note)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watchdog(limit: float, end: Callable[[int], object] = os._exit) -> Iterator[Callable[[], None]]:
    """A beat to be given at least every `limit` seconds; without it all stacks are written to stderr and the process exits 75.

    A hung step holds the main thread in compiled code, where no exception reaches it: so the process is ended. 0: no limit.
    """
    if not limit:
        yield lambda: None
        return
    last = time.monotonic()
    over = threading.Event()

    def beat() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        while not over.wait(min(1.0, limit / 4)):
            if _too_long(time.monotonic() - last, limit):
                try:
                    _show_stacks(limit)
                finally:  # nothing that is wrong with stderr may keep a hung process alive
                    end(EXIT_HUNG)
                return

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        over.set()
        thread.join()


def _too_long(seconds: float, limit: float) -> bool:
    return seconds > limit


def _show_stacks(limit: float) -> None:
    """On stderr, or, where that is replaced by something that is no file, closed or full, on the one that Python began with."""
    for file in (sys.stderr, sys.__stderr__):
        with contextlib.suppress(Exception):
            if file is None:
                continue
            print(f"error: no step ended within {limit:g} s (--watchdog); the stacks of all threads follow", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
            return
