"""A run directory belongs to one run: its lock, numerical settings and configuration."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from deepjax.errors import InputError
from deepjax.training.config import TrainConfig
from deepjax.training.distributed.collectives import on_primary, sync_errors
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.metrics.writer import Row
from deepjax.training.run_directory.config_file import AVERAGE_FILE, init_run_dir
from deepjax.training.run_directory.numerics import NAME as NUMERICS
from deepjax.training.run_directory.numerics import claim_numerics
from deepjax.training.run_directory.run_lock import LockLost, hold
from deepjax.training.run_directory.weights_identity import NAME as WEIGHTS

Say = Callable[[str], None]


@contextlib.contextmanager
def locked(out: Path, say: Say) -> Iterator[Callable[[], None]]:
    """Lock a run directory for a block of code; a run that is done is only read, without a lock.

    Yields a function that raises InputError when another process has taken the lock over. Raises
    InputError when the directory is in use.
    """
    if on_primary(lambda: is_done(read_rows(out / "metrics.jsonl"))):
        yield lambda: None
        return
    with hold(out, say) as lock:
        yield lock.confirm


def claim_run(out: Path, config: TrainConfig) -> None:
    """Write settings and configuration on process 0; check on all that theirs are the same.

    Raises InputError that names the differences, and for an average of checkpoints.
    """
    sync_errors(lambda: _refuse_average(out))
    for claim in (lambda: claim_numerics(out), lambda: init_run_dir(out, config)):
        on_primary(claim)
        sync_errors(claim)


@contextlib.contextmanager
def unclaimed_if_refused(out: Path, is_new: bool) -> Iterator[None]:
    """Remove the files of `claim_run` and of `pin_weights` of a new run that fails within.

    The corrected command then finds the directory free.
    """
    try:
        yield
    except LockLost:  # the files are those of another process now
        raise
    except Exception:
        if is_new and jax.process_index() == 0:
            for name in ("config.json", NUMERICS, WEIGHTS):
                (out / name).unlink(missing_ok=True)
        raise


def _refuse_average(out: Path) -> None:
    if (out / AVERAGE_FILE).exists():
        raise InputError(
            f"{out} holds an average of checkpoints ({AVERAGE_FILE}), which cannot be resumed; "
            f"start from it with --weights {out} and another --output-dir"
        )


def is_done(rows: list[Row]) -> bool:
    """Whether the log of a run ends with its final row."""
    return bool(rows) and rows[-1]["kind"] == "final"
