"""Opens a run directory for training: a folder, or a URL with a folder of this process for it."""

import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

from deepjax.errors import InputError, NonFiniteError, Stopped
from deepjax.paths import AnyPath
from deepjax.storage.bucket import Bucket, BucketError
from deepjax.storage.local import delete_other_folders, new_staging_folder
from deepjax.storage.lock import BucketLock
from deepjax.storage.mirror import Mirror, fetch_files, read_grown
from deepjax.storage.url import path_or_url
from deepjax.training.checkpoint.bucket_store import BucketStore
from deepjax.training.checkpoint.store import CheckpointStore, FolderStore
from deepjax.training.distributed.collectives import on_primary, sync_errors
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from deepjax.training.run_directory.run_identity import is_done, locked
from deepjax.training.run_directory.run_lock import LockLost

Say = Callable[[str], None]
Result = TypeVar("Result")


def nothing() -> None:
    """Do nothing."""


@dataclasses.dataclass(frozen=True)
class RunPlace:
    """A run directory that is open for training."""

    folder: Path
    """Of this process, with the files of the run; that of all processes if it is no bucket's."""
    store: CheckpointStore
    say: Say
    confirm_lock: Callable[[], None] = nothing
    """Raises LockLost when another process has taken the directory over."""
    publish: Callable[[], None] = nothing
    """From now on what is in the folder is written to the bucket."""


@contextlib.contextmanager
def open_place(out: AnyPath, say: Say) -> Iterator[RunPlace]:
    """Lock a run directory for a block of code; one that is done is only read, without a lock.

    Raises InputError when the directory is in use, or cannot be written.
    """
    found = path_or_url(out, "out")
    if isinstance(found, Path):
        with locked(found, say) as confirm:
            yield RunPlace(found, FolderStore(found / "checkpoints"), say, confirm)
        return
    folder = sync_errors(lambda: new_staging_folder(found, jax.process_index()))
    named = functools.partial(_with_url, folder=folder, url=found)
    try:
        with _opened(found, folder, lambda line: say(named(line))) as place:
            yield place
    except (InputError, NonFiniteError, Stopped) as error:
        if str(folder) not in str(error):
            raise
        raise type(error)(named(str(error))) from error
    except BucketError as error:  # of what nothing else handles
        raise InputError(f"{error}; the same command resumes from what the bucket has") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(url: str, folder: Path, say: Say) -> Iterator[RunPlace]:
    bucket = sync_errors(lambda: Bucket(url))
    if on_primary(lambda: _is_done(bucket)):
        sync_errors(lambda: _fetch(bucket, folder))
        yield RunPlace(folder, BucketStore(bucket, folder / "checkpoints"), say)
        return
    lock = BucketLock(bucket, say)
    try:
        on_primary(lock.acquire)
        delete_other_folders(url, jax.process_index(), folder)
        sync_errors(lambda: _fetch(bucket, folder))  # what the owner before wrote meanwhile, too
        with _mirrored(bucket, folder, lock, say) as place:
            yield place
    finally:
        lock.release()


@contextlib.contextmanager
def _mirrored(bucket: Bucket, folder: Path, lock: BucketLock, say: Say) -> Iterator[RunPlace]:
    mirror = Mirror(bucket, folder, lock.number, say)
    published = []

    def confirm() -> None:
        if lock.is_lost():
            raise _lost(bucket)

    def before_commit() -> None:
        mirror.push()
        if not lock.check():
            raise _lost(bucket)

    def publish() -> None:
        published.append(True)
        if jax.process_index() == 0:
            mirror.start()

    store = BucketStore(bucket, folder / "checkpoints", lock.number, before_commit)
    ended = False
    try:
        yield RunPlace(folder, store, say, confirm, publish)
        ended = True
    finally:
        if published and jax.process_index() == 0 and not lock.is_lost():
            _close(mirror, say, ended)


def _close(mirror: Mirror, say: Say, ended: bool) -> None:
    """Write the rest; it must succeed at the end of a run, and is tried after an error."""
    try:
        mirror.close()
    except OSError as error:
        if ended:
            raise InputError(
                f"{error}; the same command resumes from the last checkpoint there"
            ) from error
        say(f"{error}; the bucket lacks what was logged since the last checkpoint")


def _is_done(bucket: Bucket) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / METRICS
        path.write_bytes(_checked(lambda: read_grown(bucket, METRICS)))
        return is_done(read_rows(path))


def _fetch(bucket: Bucket, folder: Path) -> None:
    """Replace the files of a folder by those of the bucket. Raises InputError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _checked(lambda: fetch_files(bucket, folder))


def _checked(act: Callable[[], Result]) -> Result:
    try:
        return act()
    except BucketError as error:
        raise InputError(f"{error}; check the URL and your permissions") from error


def _lost(bucket: Bucket) -> LockLost:
    return LockLost(
        f"lost the lock on {bucket.url}: "
        "another process took it over while this one was suspended; stopping"
    )


def _with_url(text: str, folder: Path, url: str) -> str:
    return text.replace(str(folder), url)
