"""A trace of some steps by `jax.profiler`, for XProf and Perfetto (`--profile A:B`)."""

import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from deepjax.errors import describe_error
from deepjax.training.metrics.loop_clock import LoopClock

PROFILE_FOLDER = "profile"  # in the run directory


class Profiler:
    """Traces a range of steps once, in process 0. The loop calls it around each step.

    A trace that fails is a warning: the training continues without it.
    """

    def __init__(
        self, steps: range, folder: Path, clock: LoopClock, say: Callable[[str], None]
    ) -> None:
        """steps: counted from 0; empty: none. folder: where the trace is written."""
        self._steps = steps if jax.process_index() == 0 else range(0)
        self._folder, self._clock, self._say = folder, clock, say
        self._first = self._last = 0  # of the steps in a running trace; 0: none runs

    def before_step(self, done: int, state: Any) -> None:
        """Start the trace before its first step, when the devices are idle."""
        if self._first or done not in self._steps:
            return
        self._wait(state)
        self._first = done + 1
        with self._clock.part("instruments"):
            self._try(self._start)

    def after_step(self, done: int, state: Any) -> None:
        """End the trace after its last step, when the devices are idle."""
        self._last = done
        if self._first and done >= self._steps.stop:
            self._wait(state)
            self.close()

    def close(self) -> None:
        """Write a trace that still runs, of a training that ends before the last step of it."""
        if self._first:
            with self._clock.part("instruments"):
                self._try(self._stop)
            self._first, self._steps = 0, range(0)

    def _wait(self, state: Any) -> None:
        with self._clock.part("device"):
            jax.block_until_ready(state)

    def _start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python make a trace ten times as large and slow
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._say(f"profile of steps {self._first} to {self._last}: {profile_hint(self._folder)}")

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # of the profiler or the disk
            self._first, self._steps = 0, range(0)
            cause = " ".join(describe_error(error).split())
            self._say(f"warning: the profile failed: {cause}; training continues without it")


def remaining_profile(steps: range, resumed_at: int, say: Callable[[str], None]) -> range:
    """The steps of a profile that are not done yet; a line says what is traced if some are."""
    left = range(max(steps.start, resumed_at), max(steps.stop, resumed_at))
    if len(left) < len(steps):
        what = f"only steps {left.start}:{left.stop} are traced" if left else "no trace is written"
        given = f"{steps.start}:{steps.stop}"
        say(f"profile {given}: {resumed_at} steps are done already, so {what}")
    return left


def profile_hint(folder: Path) -> str:
    """How to look at the traces in a folder."""
    command = f"xprof --logdir {shlex.quote(str(folder))}"
    if importlib.util.find_spec("xprof") is None:
        command = f"pip install xprof; {command}"
    newest = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    return f"{command} (or open {newest} in https://ui.perfetto.dev)"
