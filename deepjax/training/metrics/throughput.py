"""Throughput and the fraction of time spent waiting for input, without blocking on a device."""

import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class ThroughputMeter(Iterator[Item], Generic[Item]):
    """An iterator over batches that measures images per second and the wait for input.

    A wait counts if the devices had finished all their work by its end. They may have finished only
    shortly before, so the fraction is an upper bound.
    """

    def __init__(self, batches: Iterator[Item], batch_size: int) -> None:
        self._batches, self._batch_size = batches, batch_size
        self.last_output: Any = None
        """An array of the last step: the devices are idle once it is ready. None: idle."""
        self.start()

    def start(self) -> None:
        """Start a new measurement."""
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def __next__(self) -> Item:
        """The next batch."""
        began = time.perf_counter()
        batch = next(self._batches)
        if self.last_output is None or self.last_output.is_ready():
            self._waited += time.perf_counter() - began
        self._images += self._batch_size
        return batch

    def row(self) -> dict[str, float]:
        """Entries for a row of metrics; empty if no batch was taken."""
        if not self._images:
            return {}
        seconds = time.perf_counter() - self._began
        return {
            "images_per_second": round(self._images / seconds, 2),
            "data_wait": round(self._waited / seconds, 4),
        }
