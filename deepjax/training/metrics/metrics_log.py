"""metrics.jsonl: the rows of metrics of a run."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from deepjax.errors import InputError
from deepjax.io import write_text
from deepjax.training.metrics.loop_clock import TIME
from deepjax.training.metrics.writer import MetricWriter, Row

METRICS = "metrics.jsonl"
# Entries that differ between equal runs.
TIMES = ("seconds", "images_per_second", "data_wait", TIME)


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


class MetricsLog(MetricWriter):
    """metrics.jsonl: rows in order of steps. On resume, rows after the restored step are dropped.

    Rows that cannot be written are buffered, with one warning, and written with the next row. The
    final row must be written.
    """

    def __init__(self, path: Path, resume_step: int, warn: Callable[[str], None] = print) -> None:
        """Keep the rows up to `resume_step`; raises InputError if the file cannot be written."""
        self._path, self._warn = path, warn
        self._rows = rows_up_to(resume_step, read_rows(path))
        self._dirty = False  # the file lacks rows, or has rows that were dropped
        self._rewrite()

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which will be logged again."""
        self._rows = rows_up_to(step, self._rows)
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


def rows_up_to(step: int, rows: Sequence[Row]) -> list[Row]:
    """The rows of steps up to one."""
    return [row for row in rows if row["step"] <= step]


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _cause(path: Path, error: Exception) -> str:
    return f"cannot write {path}: {error.strerror}" if isinstance(error, OSError) else str(error)
