"""How fast an epoch goes, and how much of it the devices spend waiting for data; no step is waited for to find out."""

import time
from collections.abc import Iterator
from typing import Any


class ThroughputMeter:
    """Images per second of the steps since the last `start`, and the share of that time in which data were waited for.

    A wait counts when the devices had finished all that they were given by its end. They may have finished only shortly before, so
    the share is the most that they can have waited.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def next_batch(self, batches: Iterator[Any], last: Any, images: int) -> Any:
        """The next batch, of so many images. last: an array that the step before it computes; None for no step."""
        began = time.perf_counter()
        batch = next(batches)
        if last is None or last.is_ready():
            self._waited += time.perf_counter() - began
        self._images += images
        return batch

    def row(self) -> dict[str, float]:
        """Entries for the log; none where no step was taken."""
        if not self._images:
            return {}
        seconds = time.perf_counter() - self._began
        return {
            "images_per_second": round(self._images / seconds, 2),
            "data_wait": round(self._waited / seconds, 4),
        }
