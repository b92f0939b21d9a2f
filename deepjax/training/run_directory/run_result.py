"""The result of a run, from the final row of its metrics."""

import dataclasses

from deepjax.training.metrics.writer import Row

DIGEST_CHARACTERS = 12  # characters of a digest that a message shows


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The end of a run: errors are fractions, in evaluation mode, every image counted once.

    The training error of encoded splits is that of the first images, as many as there are test
    images: decoding all of them once more would take as long as an epoch.
    """

    steps: int
    train_error: float
    train_loss: float
    train_images: int
    test_error: float
    test_loss: float
    test_images: int
    resumed_at: int
    was_done: bool
    digest: str = ""
    """Of the last checkpoint, read from disk, as `deepjax runs digest` prints it."""


def run_result(row: Row, resumed_at: int, was_done: bool) -> RunResult:
    """The result in a final row."""
    fields = {field.name for field in dataclasses.fields(RunResult)}
    values = {name: value for name, value in row.items() if name in fields}
    return RunResult(steps=row["step"], resumed_at=resumed_at, was_done=was_done, **values)
