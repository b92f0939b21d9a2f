"""The results of one arm, which the statistics, the report and the engine read."""

import dataclasses

from deepjax.errors import InputError
from deepjax.training.metrics.metrics_log import Row


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """An arm's learning-rate sweep, the selected rate, and the metrics of each seed's run."""

    sweep: dict[float, float]
    """Final training error by learning rate, on the first seed; infinite where training halted."""
    rate: float
    rows: list[list[Row]]
    """By seed: the rows of metrics.jsonl."""

    def final(self, name: str) -> list[float]:
        """A value of the final row, seed by seed."""
        return [rows[-1][name] for rows in self.rows]

    def first(self) -> list[dict[str, float]]:
        """Gradient norms by layer at the first step, seed by seed."""
        return [rows[0]["gradient_norms"] for rows in self.rows]

    def last(self) -> list[dict[str, float]]:
        """Gradient norms by layer, mean over the last epoch, seed by seed."""
        return [self.epochs(i)[-1]["gradient_norms"] for i in range(len(self.rows))]

    def epochs(self, seed: int) -> list[Row]:
        """The epoch rows of one seed's run. Raises InputError if it diverged in the first epoch."""
        epochs = [row for row in self.rows[seed] if row["kind"] == "epoch"]
        if not epochs:
            raise InputError(
                f"seed {seed} diverged before its first epoch ended and has no epoch to report; "
                "choose lower rates"
            )
        return epochs

    @property
    def diverged(self) -> int:
        """Number of seeds that diverged; each counts as guessing."""
        return sum(rows[-1].get("diverged", False) for rows in self.rows)
