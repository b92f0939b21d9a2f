"""The log of a run: process 0 writes it to every logger, all processes remember what is logged."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax

from deepjax.errors import InputError, describe_error
from deepjax.training.config import TrainConfig, options_of
from deepjax.training.metrics.metrics_log import METRICS, MetricsLog, rows_up_to
from deepjax.training.metrics.tensorboard import Tensorboard, viewing_hint
from deepjax.training.metrics.wandb_run import WandbRun
from deepjax.training.metrics.writer import Histogram, MetricWriter, OptionalWriter, Row
from deepjax.training.run_options import RunOptions

TENSORBOARD_FOLDER = "tensorboard"


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

    @property
    def takes_steps(self) -> bool:
        """Whether a writer takes rows of each step, and histograms."""
        return len(self._writers) > 1

    def write_steps(self, rows: Sequence[Row]) -> None:
        """Write rows of kind "step" to the writers that take them; they are not remembered."""
        for writer in self._writers:
            writer.write_steps(rows)

    def write_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Write histograms to the writers that take them."""
        for writer in self._writers:
            writer.write_histograms(step, histograms)

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
    out: Path,
    rows: Sequence[Row],
    resume_step: int,
    config: TrainConfig,
    options: RunOptions,
    say: Callable[[str], None],
) -> RunLog:
    """The log of a run directory, from a step on. `rows`: those of its metrics.jsonl.

    Raises InputError if metrics.jsonl cannot be written, or the package of a logger is missing.
    """
    writers: list[MetricWriter] = []
    if jax.process_index() == 0:
        writers.append(MetricsLog(out / METRICS, resume_step, say))
        if options.tensorboard:
            folder = out / TENSORBOARD_FOLDER
            make = functools.partial(Tensorboard, folder, resume_step)
            writers += _optional("TensorBoard", make, say)
            say(viewing_hint(folder))
        if options.wandb:
            writers += _optional("W&B", lambda: WandbRun(out, options_of(config)), say)
    return RunLog(rows_up_to(resume_step, rows), writers)


def _optional(
    name: str, make: Callable[[], MetricWriter], say: Callable[[str], None]
) -> list[MetricWriter]:
    """The writer, or none with a warning where it cannot start; a missing package is refused."""
    try:
        return [OptionalWriter(name, make(), say)]
    except InputError:
        raise
    except Exception as error:  # of a foreign library, a disk or a network
        cause = " ".join(describe_error(error).split())
        say(f"warning: {name} cannot start: {cause}; training continues without it")
        return []
