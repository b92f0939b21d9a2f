"""Rows of each step for loggers, without waiting for a device."""

import time
from typing import Any

import jax

from deepjax.training.metrics.run_log import RunLog

NAMES = ("loss", "learning_rate", "gradient_norm")  # of the metrics of a train step


class StepLog:
    """Keeps the metrics of steps on the devices until the loop waits for these anyway."""

    def __init__(self, log: RunLog, batch_size: int, every: int) -> None:
        """every: steps between two rows."""
        self._log, self._batch_size, self._every = log, batch_size, every
        self._waiting: list[tuple[int, dict[str, jax.Array]]] = []
        self.start(0)

    def start(self, step: int) -> None:
        """Measure images per second from here on, after a step."""
        self._began, self._first = time.perf_counter(), step

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Keep the metrics of a step."""
        if self._log.takes_steps and step % self._every == 0:
            self._waiting.append((step, {name: metrics[name] for name in NAMES}))

    def write(self, step: int) -> None:
        """Write what is kept, up to a step whose results are there, and forget the rest."""
        steps, seconds = step - self._first, time.perf_counter() - self._began
        waiting = [(at, metrics) for at, metrics in self._waiting if at <= step]
        self._waiting = []
        self.start(step)
        if not waiting:
            return
        values = jax.device_get([metrics for _, metrics in waiting])
        rows: list[dict[str, Any]] = [
            {"kind": "step", "step": at} | {name: float(each[name]) for name in NAMES}
            for (at, _), each in zip(waiting, values, strict=True)
        ]
        if steps > 0:
            rows[-1]["images_per_second"] = round(steps * self._batch_size / seconds, 2)
        self._log.write_steps(rows)
