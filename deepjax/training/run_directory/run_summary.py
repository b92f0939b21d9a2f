"""The state of run directories in one row each: progress, errors, and whether a process runs."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from deepjax.errors import InputError
from deepjax.training.checkpoint.inspect import steps_of
from deepjax.training.config import TrainConfig
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from deepjax.training.metrics.writer import Row
from deepjax.training.run_directory.config_file import AVERAGE_FILE, read_config
from deepjax.training.run_directory.run_identity import is_done
from deepjax.training.run_directory.run_lock import current_owner

State = Literal["done", "halted", "running", "stopped", "average"]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A run directory at one moment. Errors are fractions; None before they are measured."""

    path: Path
    config: TrainConfig
    state: State
    """halted: on non-finite values; running: a process has locked the directory; stopped: none has,
    and the run is not done; average: of checkpoints, by `deepjax average`."""
    step: int
    """Training steps at the last row, or at the newest checkpoint where that is later."""
    rows: list[Row]
    """Of metrics.jsonl."""
    updated: float
    """Time of the last row, in seconds since the epoch."""

    @property
    def total_steps(self) -> int:
        """Steps of the complete training."""
        return self.config.total_steps

    @property
    def epochs(self) -> list[Row]:
        """The rows at the ends of epochs."""
        return [row for row in self.rows if row["kind"] == "epoch"]

    def last(self, entry: str) -> float | None:
        """The newest value of an entry of the rows, such as "test_error"."""
        return next((row[entry] for row in reversed(self.rows) if entry in row), None)


def summarize_run(path: Path) -> RunSummary:
    """The summary of a run directory; raises InputError as `read_config` does."""
    config, rows = read_config(path), read_rows(path / METRICS)
    steps = [row["step"] for row in rows[-1:]] + steps_of(path / "checkpoints")
    stored = path / METRICS if rows else path / "config.json"
    updated = stored.stat().st_mtime
    return RunSummary(path, config, _state(path, rows), max(steps, default=0), rows, updated)


def find_runs(folder: Path) -> Iterator[Path]:
    """The run directories at or below a folder, in order of their paths.

    A run directory has a config.json with a model; those of studies have none, but their runs do.
    """
    for parent, folders, files in os.walk(folder):
        if "config.json" in files and _is_of_run(Path(parent, "config.json")):
            folders.clear()  # a run holds no other
            yield Path(parent)
        folders.sort()


def require_runs(folder: Path) -> list[Path]:
    """The run directories at or below a folder; raises InputError where there are none."""
    if found := list(find_runs(folder)):
        return found
    what = "has no run below it" if folder.exists() else "does not exist"
    raise InputError(
        f"{folder} {what}; allowed: the --output-dir folder of a training run, or a folder of such "
        "folders"
    )


def _is_of_run(path: Path) -> bool:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and isinstance(found.get("model"), str)


def _state(path: Path, rows: list[Row]) -> State:
    if (path / AVERAGE_FILE).exists():
        return "average"
    if is_done(rows):
        return "done"
    if current_owner(path):
        return "running"
    return "halted" if rows and rows[-1]["kind"] == "halted" else "stopped"
