"""What a run writes down: one JSON object a line, and TensorBoard where it is wanted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepjax.errors import InputError
from deepjax.training.config_file import write_text

Row = dict[str, Any]
TIMES = (
    "seconds",
    "images_per_second",
    "data_wait",
)  # what differs between two runs that are the same


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().splitlines()  # bytes that are no text damage a line, not the reader
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(
                    f"{path}, line {number} is damaged; delete the line, or choose another --output-dir"
                ) from error
    return rows


def _row(line: bytes) -> Row:
    """The row of a line; ValueError when it is none."""
    row = json.loads(line)
    if not (
        isinstance(row, dict)
        and isinstance(row.get("kind"), str)
        and isinstance(row.get("step"), int)
    ):
        raise ValueError("a row has a kind and a step")
    return row


class MetricsLog:
    """metrics.jsonl: rows in order of steps; reopened at a step, it forgets the rows beyond, which will come again.

    Rows that cannot be written wait in memory, with one warning, and are written with the next one; the final row must be.
    """

    def __init__(self, path: Path, resume_step: int, warn: Callable[[str], None] = print) -> None:
        """Keep the rows up to `resume_step` and append after them; raises InputError when the file cannot be written."""
        self._path, self._warn = path, warn
        self._rows = _up_to(resume_step, read_rows(path))
        self._behind = False  # the file lacks rows, or holds some that were taken back
        self._rewrite()

    def rewind(self, step: int) -> None:
        """Forget the rows beyond a step, which will come again."""
        self._rows = _up_to(step, self._rows)
        self._try(self._rewrite)

    def write(self, row: Row) -> None:
        """Append a row and hand it to the operating system; raises InputError when the row of kind "final" cannot be written."""
        self._rows.append(row)
        self._try(self._rewrite if self._behind else self._append)
        if self._behind and row["kind"] == "final":
            raise InputError(
                f"cannot write {self._path} (see above); free space, and the same command carries on"
            )

    def flush(self) -> None:
        """Try again to write what waits, if anything does; never raises."""
        if self._behind:
            self._try(self._rewrite)

    close = flush  # the file is open only while a row is written

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
            self._behind = False
        except (OSError, InputError) as error:
            if not self._behind:
                self._warn(
                    f"{_cause(self._path, error)}; its rows wait in memory and training goes on"
                )
            self._behind = True

    def _append(self) -> None:
        with self._path.open("a") as file:
            file.write(_line(self._rows[-1]))

    def _rewrite(self) -> None:
        write_text(self._path, "".join(map(_line, self._rows)))


def _up_to(step: int, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["step"] <= step]


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _cause(path: Path, error: Exception) -> str:
    return f"cannot write {path}: {error.strerror}" if isinstance(error, OSError) else str(error)


class Tensorboard:
    """The same rows for TensorBoard (the extra `tensorboard`)."""

    def __init__(self, folder: Path) -> None:
        """Open an event file in `folder`; raises InputError when the extra is missing."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "tensorboard needs tensorboardX; install it with: pip install 'deepjax[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def write(self, row: Row) -> None:
        """Every number of a row as a scalar."""
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
