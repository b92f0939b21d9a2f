"""Weights & Biases: the rows of a run, under one id for all starts (the extra `wandb`)."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.errors import InputError
from deepjax.io import write_text
from deepjax.training.metrics.writer import Histogram, MetricWriter, Row, scalars_of

WANDB_FILE = "wandb.json"  # in the run directory: the id, and the last step logged by kind of row
FINISH_SECONDS = 300.0  # for what is left at the end, where the network is slow or gone
STEP = "step"  # the horizontal axis: W&B's own step cannot go back when a run resumes


class WandbRun(MetricWriter):
    """A run of Weights & Biases.

    A resumed run continues it: what was logged by a start that ended in order, as after SIGTERM, is
    not logged again. After a kill it is unknown what W&B has received, so the steps after the
    checkpoint are logged again, with equal values. Rows cannot be taken back; after a rollback both
    values of a step stay.
    """

    def __init__(self, out: Path, config: Mapping[str, Any]) -> None:
        """Start it, or continue that of the run directory `out`.

        The variables WANDB_PROJECT, WANDB_NAME, WANDB_ENTITY and WANDB_MODE are read. Raises
        InputError if the extra is not installed, and W&B's errors, such as a missing login.
        """
        try:
            import wandb  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError as error:
            raise InputError(
                "wandb is not installed; install it with: pip install 'deepjax[wandb]'"
            ) from error
        self._path, self._histogram = out / WANDB_FILE, wandb.Histogram
        stored = _read(self._path)
        self._id, self._logged = stored["id"], stored["logged"]
        self._run = wandb.init(
            id=self._id,
            resume="allow",
            dir=str(out),
            project=os.environ.get("WANDB_PROJECT", "deepjax"),
            name=os.environ.get("WANDB_NAME", out.name),
            config=dict(config),
            settings=wandb.Settings(finish_timeout=FINISH_SECONDS),
        )
        self._run.define_metric("*", step_metric=STEP)
        self._save()

    def write(self, row: Row) -> None:
        """Log the numbers of a row."""
        self.write_steps([row])

    def write_steps(self, rows: Sequence[Row]) -> None:
        """Log the numbers of every row."""
        for row in rows:
            if row["step"] > self._logged.get(row["kind"], -1):
                self._run.log({**dict(scalars_of(row)), STEP: row["step"]})
                self._logged[row["kind"]] = row["step"]

    def write_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Log histograms."""
        if step <= self._logged.get("histograms", -1):
            return
        found = {
            name: self._histogram(np_histogram=(each.counts, each.edges))
            for name, each in histograms.items()
        }
        self._run.log({**found, STEP: step})
        self._logged["histograms"] = step

    def rewind(self, step: int) -> None:
        """What follows a step is logged again."""
        self._logged = {kind: min(at, step) for kind, at in self._logged.items()}

    def close(self) -> None:
        """Send what is left, and note what is logged."""
        self._run.finish()
        self._save()

    def _save(self) -> None:
        write_text(self._path, json.dumps({"id": self._id, "logged": self._logged}) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """The id and the steps of an earlier start, or a new id."""
    try:
        found = json.loads(path.read_text())
        logged = {str(kind): int(step) for kind, step in found["logged"].items()}
        return {"id": str(found["id"]), "logged": logged}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"id": uuid.uuid4().hex, "logged": {}}
