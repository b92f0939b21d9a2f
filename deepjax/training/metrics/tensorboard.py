"""TensorBoard: event files of scalars and histograms (the extra `tensorboard`)."""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.errors import InputError
from deepjax.training.metrics.writer import Histogram, MetricWriter, Row, scalars_of


class Tensorboard(MetricWriter):
    """Event files in a folder.

    Written in the thread of the caller: after an error, such as that of a full disk, the queue of
    tensorboardX's SummaryWriter blocks for ever. A new file says that steps after the one where
    training resumes are written again, and TensorBoard drops those of earlier files.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        """Open an event file; raises InputError if the extra is not installed."""
        try:
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise InputError(
                "tensorboard needs tensorboardX; "
                "install it with: pip install 'deepjax[tensorboard]'"
            ) from error
        self._writer_type, self._summary = event_file_writer.EventsWriter, summary
        self._events, self._folder = event_pb2, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = self._open(resume_step)

    def write(self, row: Row) -> None:
        """Write every number of a row as a scalar."""
        self.write_steps([row])

    def write_steps(self, rows: Sequence[Row]) -> None:
        """Write every number of every row as a scalar."""
        for row in rows:
            values = [self._summary.scalar(tag, value) for tag, value in scalars_of(row)]
            for value in values:
                self._write(row["step"], summary=value)
        self.flush()

    def write_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Write histograms; the sum and the sum of squares are those of the middles of the bins."""
        for name, histogram in histograms.items():
            counts, edges = histogram.counts, histogram.edges
            middles = (edges[1:] + edges[:-1]) / 2
            value = self._summary.histogram_raw(
                name,
                float(edges[0]),
                float(edges[-1]),
                int(counts.sum()),
                float((counts * middles).sum()),
                float((counts * middles**2).sum()),
                edges[1:].tolist(),
                counts.tolist(),
            )
            self._write(step, summary=value)
        self.flush()

    def rewind(self, step: int) -> None:
        """Begin a file by which TensorBoard drops what follows a step."""
        self._writer.close()
        self._writer = self._open(step)

    def flush(self) -> None:
        """Write what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()

    def _open(self, step: int) -> Any:
        # tensorboardX names files by the second, and a second file of that name replaces the first.
        suffix = f".{time.time_ns()}"
        self._writer = self._writer_type(str(self._folder / "events"), suffix)
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(step + 1, session_log=log)
        return self._writer

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, **what))


def viewing_hint(folder: Path) -> str:
    """How to look at the event files of a folder."""
    command = f"tensorboard --logdir {folder}"
    if importlib.util.find_spec("tensorboard") is None:
        command = f"pip install tensorboard; {command}"
    return f"TensorBoard shows each step: {command}"
