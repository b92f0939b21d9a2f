"""Where the time of the training loop goes, by part, without waiting for a device."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import jax

from deepjax.training.metrics.writer import Row

Part = Literal["input", "host", "device", "checkpoint", "evaluation", "instruments"]
PARTS: tuple[Part, ...] = get_args(Part)
TIME = "time"  # entry of a row: seconds in total and by part


class LoopClock:
    """Divides the time of the loop among its parts; at each moment one of them runs.

    Steps are dispatched asynchronously: while the devices compute, the loop prepares the next step.
    So an interval of host or input counts as device if the devices still compute at its end. They
    may have finished shortly before its end, so host and input are upper bounds of the time that
    the devices wait for them, and device is a lower bound of the time that they compute.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        """Since the start, by part."""
        self._last_output: Any = None  # of the last step: the devices are idle once it is ready
        self.start()

    def start(self) -> None:
        """Start anew, on the host."""
        self._part: Part = "host"
        self._at = self._row_began = time.perf_counter()
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._of_rows = dict(self.seconds)

    @contextlib.contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count a block as a part, which a profile names; a block within it is subtracted."""
        outer = self._switch(name)
        try:
            with jax.profiler.TraceAnnotation(name):
                yield
        finally:
            self._switch(outer)

    def dispatched(self, output: Any) -> None:
        """Note an output of the step that was just called.

        The call counts as device if the step is done when it returns: some backends compute in it.
        """
        self._count(is_device=self._is_computing() or output.is_ready())
        self._last_output = output

    def row(self) -> Row:
        """The entry of a row: total and parts in seconds, since the row before it."""
        self._switch(self._part)
        total, self._row_began = self._at - self._row_began, self._at
        parts = {part: self.seconds[part] - self._of_rows[part] for part in PARTS}
        self._of_rows = dict(self.seconds)
        return {TIME: {name: round(value, 3) for name, value in {"total": total, **parts}.items()}}

    def _switch(self, part: Part) -> Part:
        """Count the interval that ends; returns its part."""
        self._count(is_device=self._part in ("input", "host") and self._is_computing())
        before, self._part = self._part, part
        return before

    def _count(self, is_device: bool) -> None:
        now = time.perf_counter()
        self.seconds["device" if is_device else self._part] += now - self._at
        self._at = now

    def _is_computing(self) -> bool:
        return self._last_output is not None and not self._last_output.is_ready()


def time_by_part(rows: Iterable[Row]) -> dict[str, float]:
    """Seconds of all rows by part, the largest first, without parts of no time."""
    times = [row[TIME] for row in rows if TIME in row]
    sums = {part: sum(each[part] for each in times) for part in PARTS}
    return {part: sums[part] for part in sorted(sums, key=lambda p: -sums[p]) if sums[part]}


def describe_time(rows: Iterable[Row]) -> str:
    """Where the time of rows went, in words; "" where they have none."""
    parts = time_by_part(rows)
    total = sum(parts.values())
    fractions = (f"{part} {100 * seconds / total:.1f} %" for part, seconds in parts.items())
    return f"{total:,.1f} s: {', '.join(fractions)}" if parts else ""
