"""The results of one arm, which claims, figures and tables read."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from deepjax.training.metrics.writer import Row


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """An arm's learning rate, and the metrics and errors of each seed's run."""

    rate: float
    rows: list[list[Row]]
    """By seed: the rows of metrics.jsonl."""
    misclassified: Mapping[str, np.ndarray]
    """For "train" and "test": 1 where an image is misclassified at the end, (seeds, images)."""
    dataset: str
    pilot: str = ""
    """The arm whose pilot chose the rate."""
    selection: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.0, "test": 0.0}
    )
    """Standard deviation of the errors from the choice of the rate, fractions."""

    def error(self, split: str) -> float:
        """The mean error over seeds, a fraction."""
        return float(self.misclassified[split].mean())

    def errors(self, split: str) -> list[float]:
        """The error seed by seed, fractions."""
        return self.misclassified[split].mean(1).tolist()

    def final(self, name: str) -> list[float]:
        """A value of the final row, seed by seed."""
        return [rows[-1][name] for rows in self.rows]

    @property
    def finished(self) -> list[list[Row]]:
        """The rows of the seeds that did not diverge."""
        return [rows for rows in self.rows if not rows[-1].get("diverged", False)]

    def first(self) -> list[dict[str, float]]:
        """Gradient norms by layer at the first step, of each seed that did not diverge."""
        return [rows[0]["gradient_norms"] for rows in self.finished]

    def last(self) -> list[dict[str, float]]:
        """Gradient norms by layer, mean over the last epoch, of each seed that did not diverge."""
        return [epochs[-1]["gradient_norms"] for epochs in self.epochs()]

    def epochs(self) -> list[list[Row]]:
        """The rows of all epochs, of each seed that did not diverge."""
        return [[row for row in rows if row["kind"] == "epoch"] for rows in self.finished]

    @property
    def diverged(self) -> int:
        """Number of seeds that diverged; each counts as guessing."""
        return len(self.rows) - len(self.finished)
