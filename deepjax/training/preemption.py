"""Stop signals, on which all processes agree, and a watchdog for steps that hang."""

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

EXIT_HUNG = 75  # EX_TEMPFAIL: the scheduler may retry


# Sent by schedulers before they kill: SLURM's --signal and GraceTime, SGE's -notify, LSF's warnings
# and limits; and SIGHUP, when a terminal closes. Not Ctrl-C (SIGINT), which interrupts.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP)


class PreemptionSignal:
    """Whether a stop signal arrived in any process; asked once per step and evaluation batch."""

    def __init__(self) -> None:
        """No signal has arrived."""
        self.signal = signal.SIGTERM
        """The signal that arrived; SIGTERM if it arrived in another process."""
        self._here = False
        self._agreed = False
        self._asked = 0

    def note(self, number: int, *_: object) -> None:
        """The handler of a signal."""
        self.signal, self._here = signal.Signals(number), True

    def forward(self, number: int, *_: object) -> None:
        """The handler among several processes: jax's preemption service handles SIGTERM alone."""
        self.note(number)
        signal.raise_signal(signal.SIGTERM)

    def __call__(self) -> bool:
        """Whether to stop: the same answer in all processes, which must ask equally often."""
        if jax.process_count() == 1:
            return self._here
        # jax's own handler records the signal and agrees on the sync point at which all stop.
        self._asked += 1
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(self._asked)
        return self._agreed


@contextlib.contextmanager
def stop_signals() -> Iterator[PreemptionSignal]:
    """Handle the free stop signals, in the main thread.

    Among several processes jax.distributed handles SIGTERM.
    """
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
    """SIGTERM, and the STOP_SIGNALS that are neither ignored (SIGHUP under nohup) nor handled."""
    return [
        number
        for number in STOP_SIGNALS
        if number == signal.SIGTERM or signal.getsignal(number) is signal.SIG_DFL
    ]


@contextlib.contextmanager
def handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Install handlers of signals, and restore the previous ones at the end."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def watchdog(limit: float, end: Callable[[int], object] = os._exit) -> Iterator[Callable[[], None]]:
    """Gives a heartbeat to call at least every `limit` seconds; 0: no limit.

    Without it all stacks are written to stderr and the process exits with 75: a hung step holds the
    main thread in compiled code, where no exception reaches it.
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
                finally:  # a broken stderr must not keep a hung process alive
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
    """On stderr, or, if that is not a file, closed or full, on Python's original stderr."""
    for file in (sys.stderr, sys.__stderr__):
        with contextlib.suppress(Exception):
            if file is None:
                continue
            print(
                f"error: no step ended within {limit:g} s (--step-timeout); "
                "the stacks of all threads follow",
                file=file,
                flush=True,
            )
            faulthandler.dump_traceback(file, all_threads=True)
            return
