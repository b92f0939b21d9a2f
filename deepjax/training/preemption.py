"""What may end a run from outside: signals, on which all processes agree, and a step that never ends."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_HUNG = 75  # EX_TEMPFAIL: worth trying again


# What schedulers send before they kill: SLURM's --signal and GraceTime, SGE's -notify, LSF's warnings and limits; and SIGHUP, by
# which a terminal goes away. Ctrl-C (SIGINT) is not among them: it interrupts.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP)


class PreemptionSignal:
    """Whether a stop signal has arrived, here or at another process; asked once a step and once a batch of evaluation."""

    def __init__(self) -> None:
        """Not yet asked to stop."""
        self.signal = signal.SIGTERM
        """The signal that arrived; of another process's it is known as SIGTERM."""
        self._here = False
        self._agreed = False
        self._asked = 0

    def note(self, number: int, *_: object) -> None:
        """The signal's handler."""
        self.signal, self._here = signal.Signals(number), True

    def forward(self, number: int, *_: object) -> None:
        """The handler among several processes: jax's preemption service listens to SIGTERM alone, and tells all processes."""
        self.note(number)
        signal.raise_signal(signal.SIGTERM)

    def __call__(self) -> bool:
        """Whether to stop; every process must ask equally often, and all get the same answer."""
        if jax.process_count() == 1:
            return self._here
        self._asked += 1  # jax's own handler notes the signal, and tells every process after which question to stop
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(self._asked)
        return self._agreed


@contextlib.contextmanager
def stop_signals() -> Iterator[PreemptionSignal]:
    """Listen to the free stop signals; only the main thread can, and among several processes jax.distributed has SIGTERM."""
    stopping = PreemptionSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    handlers = dict.fromkeys(free_stop_signals(), stopping.note)
    if jax.process_count() > 1:
        handlers = {number: stopping.forward for number in handlers if number != signal.SIGTERM}
    with handling(handlers):
        yield stopping


def free_stop_signals() -> list[signal.Signals]:
    """SIGTERM, and those of STOP_SIGNALS that are neither ignored (as SIGHUP under nohup) nor handled by the program itself."""
    return [
        number
        for number in STOP_SIGNALS
        if number == signal.SIGTERM or signal.getsignal(number) is signal.SIG_DFL
    ]


@contextlib.contextmanager
def handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Handlers of signals, and those before them put back at the end."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def call_all(*functions: Callable[[], None]) -> Callable[[], None]:
    """One function that calls all of these, in order."""

    def call() -> None:
        for function in functions:
            function()

    return call


def _too_long(seconds: float, limit: float) -> bool:
    return seconds > limit


def _show_stacks(limit: float) -> None:
    """On stderr, or, where that is replaced by something that is no file, closed or full, on the one that Python began with."""
    for file in (sys.stderr, sys.__stderr__):
        with contextlib.suppress(Exception):
            if file is None:
                continue
            print(
                f"error: no step ended within {limit:g} s (--step-timeout); the stacks of all threads follow",
                file=file,
                flush=True,
            )
            faulthandler.dump_traceback(file, all_threads=True)
            return
