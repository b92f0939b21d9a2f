"""Claims a run directory for one run: its lock, its settings, its configuration."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from deepjax.errors import InputError
from deepjax.training.config import TrainConfig
from deepjax.training.config_file import init_run_dir
from deepjax.training.distributed.collectives import on_primary, sync_errors
from deepjax.training.metrics_log import Row, read_rows
from deepjax.training.numerics import NAME as NUMERICS
from deepjax.training.numerics import claim_numerics
from deepjax.training.run_lock import LockLost, hold

Say = Callable[[str], None]


@contextlib.contextmanager
def locked(out: Path, say: Say) -> Iterator[Callable[[], None]]:
    """Lock a run directory; a run that is done is only read, and not locked.

    Yields a function that raises InputError if another process has taken the lock over. Raises
    InputError if the directory is in use.
    """
    if on_primary(lambda: is_done(read_rows(out / "metrics.jsonl"))):
        yield lambda: None
        return
    with hold(out, say) as lock:
        yield lock.confirm


def claim_run(out: Path, config: TrainConfig) -> None:
    """Process 0 claims the directory for settings and configuration; the others compare theirs.

    Raises InputError that names what differs.
    """
    for claim in (lambda: claim_numerics(out), lambda: init_run_dir(out, config)):
        on_primary(claim)
        sync_errors(claim)


@contextlib.contextmanager
def unclaimed_if_refused(out: Path, is_new: bool) -> Iterator[None]:
    """Remove the claim of a new run that is refused within the block."""
    try:
        yield
    except LockLost:  # what is there now is another process's
        raise
    except InputError:
        if is_new and jax.process_index() == 0:
            for name in ("config.json", NUMERICS):
                (out / name).unlink(missing_ok=True)
        raise


def is_done(rows: list[Row]) -> bool:
    """Whether the rows of a run's log end with its final one."""
    return bool(rows) and rows[-1]["kind"] == "final"
