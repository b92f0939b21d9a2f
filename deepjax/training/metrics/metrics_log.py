"""The rows of metrics of a run: metrics.jsonl, and TensorBoard if asked for."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from deepjax.errors import InputError
from deepjax.io import write_text

Row = dict[str, Any]
METRICS = "metrics.jsonl"
TIMES = ("seconds", "images_per_second", "data_wait")  # entries that differ between equal runs


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl, without a last line that a kill cut short."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().splitlines()  # bytes: a line that is not text is an error of its own
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(
                    f"{path}, line {number} is corrupt; "
                    "delete the line, or choose another --output-dir"
                ) from error
    return rows


def _row(line: bytes) -> Row:
    """The row in a line; raises ValueError if there is none."""
    row = json.loads(line)
    if not (
        isinstance(row, dict)
        and isinstance(row.get("kind"), str)
        and isinstance(row.get("step"), int)
    ):
        raise ValueError("a row has a kind and a step")
    return row


class MetricWriter:
    """Where rows go. The defaults of all but `write` are for writers that cannot take rows back."""

    def write(self, row: Row) -> None:
        """Write a row."""
        raise NotImplementedError

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which will be logged again."""

    def flush(self) -> None:
        """Write rows that are buffered."""

    def close(self) -> None:
        """Flush and close."""


class MetricsLog(MetricWriter):
    """metrics.jsonl: rows in order of steps. On resume, rows after the restored step are dropped.

    Rows that cannot be written are buffered, with one warning, and written with the next row. The
    final row must be written.
    """

    def __init__(self, path: Path, resume_step: int, warn: Callable[[str], None] = print) -> None:
        """Keep the rows up to `resume_step`; raises InputError if the file cannot be written."""
        self._path, self._warn = path, warn
        self._rows = _up_to(resume_step, read_rows(path))
        self._dirty = False  # the file lacks rows, or has rows that were dropped
        self._rewrite()

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which will be logged again."""
        self._rows = _up_to(step, self._rows)
        self._try(self._rewrite)

    def write(self, row: Row) -> None:
        """Append a row; raises InputError if a row of kind "final" cannot be written."""
        self._rows.append(row)
        self._try(self._rewrite if self._dirty else self._append)
        if self._dirty and row["kind"] == "final":
            raise InputError(
                f"cannot write {self._path} (see above); free space, and the same command resumes"
            )

    def flush(self) -> None:
        """Try again to write buffered rows; never raises."""
        if self._dirty:
            self._try(self._rewrite)

    def close(self) -> None:
        """Flush; the file is open only while a row is written."""
        self.flush()

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
            self._dirty = False
        except (OSError, InputError) as error:
            if not self._dirty:
                self._warn(
                    f"{_cause(self._path, error)}; its rows wait in memory and training continues"
                )
            self._dirty = True

    def _append(self) -> None:
        with self._path.open("a") as file:
            file.write(_line(self._rows[-1]))

    def _rewrite(self) -> None:
        write_text(self._path, "".join(map(_line, self._rows)))


def _up_to(step: int, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["step"] <= step]


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _cause(path: Path, error: Exception) -> str:
    return f"cannot write {path}: {error.strerror}" if isinstance(error, OSError) else str(error)


class Tensorboard(MetricWriter):
    """The rows for TensorBoard (the extra `tensorboard`)."""

    def __init__(self, folder: Path) -> None:
        """Open an event file in `folder`; raises InputError if the extra is not installed."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "tensorboard needs tensorboardX; "
                "install it with: pip install 'deepjax[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def write(self, row: Row) -> None:
        """Write every number of a row as a scalar."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        for name in ("auxiliary", "train_auxiliary", "test_auxiliary"):
            for head, values in row.get(name, {}).items():
                for what, value in values.items():
                    self._writer.add_scalar(
                        f"{row['kind']}/{name}_{head}/{what}", value, row["step"]
                    )
        for layer, values in row.get("layers", {}).items():
            for what, value in values.items():
                self._writer.add_scalar(f"trace_{what}/{layer}", value, row["step"])
        for what, value in row.get("curvature_and_noise", {}).items():
            self._writer.add_scalar(f"curvature_and_noise/{what}", value, row["step"])
        for layer, value in row.get("gradient_norms", {}).items():
            self._writer.add_scalar(f"gradient_norm/{layer}", value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class RunLog:
    """The rows of a run: written by process 0, remembered as (kind, step) by all processes."""

    def __init__(self, rows: Iterable[Row], writers: Sequence[MetricWriter]) -> None:
        """`rows`: those logged before this process; `writers`: none in processes other than 0."""
        self._logged = {(row["kind"], row["step"]) for row in rows}
        self._writers = tuple(writers)

    def has(self, kind: str, step: int) -> bool:
        """Whether a row of this kind and step is logged: a resumed run does not log it again."""
        return (kind, step) in self._logged

    def write(self, row: Row) -> None:
        """Write a row to every writer."""
        self._logged.add((row["kind"], row["step"]))
        for writer in self._writers:
            writer.write(row)

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which will be logged again."""
        self._logged = {(kind, at) for kind, at in self._logged if at <= step}
        for writer in self._writers:
            writer.rewind(step)

    def flush(self) -> None:
        """Write buffered rows, before a checkpoint: a run that resumes from it would lack them."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Close every writer."""
        for writer in reversed(self._writers):
            writer.close()


def open_run_log(
    out: Path, rows: Sequence[Row], resume_step: int, tensorboard: bool, warn: Callable[[str], None]
) -> RunLog:
    """The log of a run directory, from a step on. `rows`: those of its metrics.jsonl.

    Raises InputError if a file cannot be written, or tensorboardX is missing.
    """
    writers: list[MetricWriter] = []
    if jax.process_index() == 0:
        writers.append(MetricsLog(out / METRICS, resume_step, warn))
        if tensorboard:
            writers.append(Tensorboard(out / "tensorboard"))
    return RunLog(_up_to(resume_step, rows), writers)
