"""Where the metrics of a run go: one small interface, implemented by each logger."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deepjax.errors import describe_error

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of values between edges: counts (bins,) ints, edges (bins + 1,) floats."""

    counts: np.ndarray
    edges: np.ndarray


class MetricWriter:
    """Where rows go. The defaults of all but `write` do nothing."""

    def write(self, row: Row) -> None:
        """Write a row of metrics.jsonl: of an epoch, a probe, a skipped step."""
        raise NotImplementedError

    def write_steps(self, rows: Sequence[Row]) -> None:
        """Write rows of kind "step", which metrics.jsonl does not have."""

    def write_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Write histograms by name, after a step."""

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which will be logged again."""

    def flush(self) -> None:
        """Write rows that are buffered."""

    def close(self) -> None:
        """Flush and close."""


class OptionalWriter(MetricWriter):
    """A writer whose first error ends it, with one warning, and not the training."""

    def __init__(self, name: str, writer: MetricWriter, warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._writer: MetricWriter | None = writer

    def write(self, row: Row) -> None:
        """Write a row."""
        self._try(lambda writer: writer.write(row))

    def write_steps(self, rows: Sequence[Row]) -> None:
        """Write rows of kind "step"."""
        self._try(lambda writer: writer.write_steps(rows))

    def write_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Write histograms by name, after a step."""
        self._try(lambda writer: writer.write_histograms(step, histograms))

    def rewind(self, step: int) -> None:
        """Drop the rows after a step."""
        self._try(lambda writer: writer.rewind(step))

    def flush(self) -> None:
        """Write rows that are buffered."""
        self._try(lambda writer: writer.flush())

    def close(self) -> None:
        """Flush and close."""
        self._try(lambda writer: writer.close())

    def _try(self, call: Callable[[MetricWriter], None]) -> None:
        if self._writer is None:
            return
        try:
            call(self._writer)
        except Exception as error:  # of a foreign library, a disk or a network
            self._writer = None
            cause = " ".join(describe_error(error).split())
            self._warn(f"{self._name} failed: {cause}; training continues without it")


def scalars_of(row: Row) -> Iterator[tuple[str, float]]:
    """The numbers of a row under the names that loggers show, such as "epoch/test_error"."""
    kind = row["kind"]
    for name, value in row.items():
        if name != "step" and isinstance(value, int | float):
            yield f"{kind}/{name}", value
    for name in ("auxiliary", "train_auxiliary", "test_auxiliary"):
        for head, values in row.get(name, {}).items():
            for what, value in values.items():
                yield f"{kind}/{name}_{head}/{what}", value
    for part, seconds in row.get("time", {}).items():
        yield f"{kind}_time/{part}", seconds
    for layer, values in row.get("layers", {}).items():
        for what, value in values.items():
            yield f"trace_{what}/{layer}", value
    for what, value in row.get("curvature_and_noise", {}).items():
        yield f"curvature_and_noise/{what}", value
    for layer, value in row.get("gradient_norms", {}).items():
        yield f"gradient_norm/{layer}", value
