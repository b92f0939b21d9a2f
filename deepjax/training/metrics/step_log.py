"""The metrics of steps, and their rows for loggers, without waiting for a device."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from deepjax.training.metrics.run_log import RunLog

NAMES = ("loss", "learning_rate", "gradient_norm")  # of the metrics of a train step


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """The metrics of consecutive steps, on the devices."""

    first: int
    """The number of the first step, from 1."""
    count: int
    values: dict[str, Any]
    """Of one step: scalars; of several: a leading axis, of which the first `count` are used."""

    @property
    def done(self) -> int:
        """Steps done after them."""
        return self.first + self.count - 1

    def last(self, name: str) -> Any:
        """A metric of the last step: a scalar, or a tree of such."""
        at = self.count - 1
        return jax.tree.map(lambda leaf: leaf[at] if leaf.ndim else leaf, self.values[name])


class StepLog:
    """Keeps the metrics of steps on the devices until the loop waits for these anyway."""

    def __init__(self, log: RunLog, batch_size: int, every: int) -> None:
        """every: steps between two rows."""
        self._log, self._batch_size, self._every = log, batch_size, every
        self._waiting: list[StepMetrics] = []
        self.start(0)

    def start(self, step: int) -> None:
        """Measure images per second from here on, after a step."""
        self._began, self._first = time.perf_counter(), step

    def add(self, metrics: StepMetrics) -> None:
        """Keep the metrics of steps, if a row of one of them is due."""
        is_due = metrics.done // self._every > (metrics.first - 1) // self._every
        if self._log.takes_steps and is_due:
            named = {name: metrics.values[name] for name in NAMES}
            self._waiting.append(dataclasses.replace(metrics, values=named))

    def write(self, step: int) -> None:
        """Write what is kept, up to a step whose results are there, and forget the rest."""
        steps, seconds = step - self._first, time.perf_counter() - self._began
        waiting, self._waiting = self._waiting, []
        self.start(step)
        values = jax.device_get([metrics.values for metrics in waiting])
        rows: list[dict[str, Any]] = [
            {"kind": "step", "step": at} | _of_step(of_each, at - metrics.first)
            for metrics, of_each in zip(waiting, values, strict=True)
            for at in range(metrics.first, min(metrics.done, step) + 1)
            if at % self._every == 0
        ]
        if not rows:
            return
        if steps > 0:
            rows[-1]["images_per_second"] = round(steps * self._batch_size / seconds, 2)
        self._log.write_steps(rows)


def _of_step(values: dict[str, np.ndarray], place: int) -> dict[str, float]:
    return {name: float(np.atleast_1d(value)[place]) for name, value in values.items()}
