"""What a run writes down: one JSON object a line, and TensorBoard where it is wanted."""

import json
from pathlib import Path
from typing import Any

from deepjax.errors import InputError
from deepjax.training.config import write_text

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number} is damaged; delete the line, or choose another --out") from error
    return rows


def _row(line: str) -> Row:
    """The row of a line; ValueError when it is none."""
    row = json.loads(line)
    if not (isinstance(row, dict) and isinstance(row.get("kind"), str) and isinstance(row.get("step"), int)):
        raise ValueError("a row has a kind and a step")
    return row


class MetricsLog:
    """metrics.jsonl: rows in order of steps; reopened at a step, it forgets the rows beyond, which will come again."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Keep the rows up to `resume_step` and append after them; raises InputError when the file cannot be written."""
        self._path = path
        self._rewrite(resume_step)
        self._file = path.open("a")

    def rewind(self, step: int) -> None:
        """Forget the rows beyond a step, which will come again."""
        self._file.close()
        self._rewrite(step)
        self._file = self._path.open("a")

    def write(self, row: Row) -> None:
        """Append a row and hand it to the operating system."""
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self._file.name}: {error.strerror}; free space or choose another --out") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rewrite(self, step: int) -> None:
        kept = [row for row in read_rows(self._path) if row["step"] <= step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))


class Tensorboard:
    """The same rows for TensorBoard (the extra `tensorboard`)."""

    def __init__(self, folder: Path) -> None:
        """Open an event file in `folder`; raises InputError when the extra is missing."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError("tensorboard needs tensorboardX; install it with: pip install 'deepjax[tensorboard]'") from error
        self._writer = SummaryWriter(str(folder))

    def write(self, row: Row) -> None:
        """Every number of a row as a scalar."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        for name in ("auxiliary", "train_auxiliary", "test_auxiliary"):
            for head, values in row.get(name, {}).items():
                for what, value in values.items():
                    self._writer.add_scalar(f"{row['kind']}/{name}_{head}/{what}", value, row["step"])
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
