"""Throughput and the fraction of time spent waiting for input, without blocking on a device."""

import time

from deepjax.training.metrics.loop_clock import LoopClock


class ThroughputMeter:
    """Measures images per second and the wait for input.

    A wait counts if the devices had finished all their work by its end, see `LoopClock`.
    """

    def __init__(self, batch_size: int, clock: LoopClock) -> None:
        self._batch_size, self._clock = batch_size, clock
        self.start()

    def start(self) -> None:
        """Start a new measurement."""
        self._began, self._images = time.perf_counter(), 0
        self._waited = self._clock.seconds["input"]

    def add(self, steps: int) -> None:
        """Count steps that were taken."""
        self._images += steps * self._batch_size

    def row(self) -> dict[str, float]:
        """Entries for a row of metrics; empty if no step was taken."""
        if not self._images:
            return {}
        seconds = time.perf_counter() - self._began
        waited = self._clock.seconds["input"] - self._waited
        return {
            "images_per_second": round(self._images / seconds, 2),
            "data_wait": round(waited / seconds, 4),
        }
