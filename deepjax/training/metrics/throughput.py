"""Throughput and the fraction of time spent waiting for input, without blocking on a device."""

import time
from collections.abc import Iterator
from typing import Generic, TypeVar

from deepjax.training.metrics.loop_clock import LoopClock

Item = TypeVar("Item")


class ThroughputMeter(Iterator[Item], Generic[Item]):
    """An iterator over batches that measures images per second and the wait for input.

    A wait counts if the devices had finished all their work by its end, see `LoopClock`.
    """

    def __init__(self, batches: Iterator[Item], batch_size: int, clock: LoopClock) -> None:
        self._batches, self._batch_size, self._clock = batches, batch_size, clock
        self.start()

    def start(self) -> None:
        """Start a new measurement."""
        self._began, self._images = time.perf_counter(), 0
        self._waited = self._clock.seconds["input"]

    def __next__(self) -> Item:
        """The next batch."""
        with self._clock.part("input"):
            batch = next(self._batches)
        self._images += self._batch_size
        return batch

    def row(self) -> dict[str, float]:
        """Entries for a row of metrics; empty if no batch was taken."""
        if not self._images:
            return {}
        seconds = time.perf_counter() - self._began
        waited = self._clock.seconds["input"] - self._waited
        return {
            "images_per_second": round(self._images / seconds, 2),
            "data_wait": round(waited / seconds, 4),
        }
