"""The lock of a run directory, so that two processes never write in it at the same time.

The lock is the file `run.lock`, made with O_EXCL, which is atomic on network file systems too
(flock is not). It names its owner by host, process and start time. The owner renews its
modification time; no two clocks are compared.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deepjax.errors import InputError
from deepjax.owner import Owner, has_ended, is_here, named_owner, parse_owner, this_process
from deepjax.training.distributed.collectives import on_primary

NAME = "run.lock"
HEARTBEAT = 10.0  # seconds between two renewals
STALE = 60.0  # seconds without one after which an owner on another machine counts as dead

Say = Callable[[str], None]
_Seen = tuple[bytes, int]  # content of the lock and time of its last renewal


class LockLost(InputError):
    """Another process has taken the run directory over."""


class RunLock:
    """The lock of one directory: `acquire`, `confirm` now and then, `release`."""

    def __init__(
        self, folder: Path, say: Say, heartbeat: float = HEARTBEAT, stale: float = STALE
    ) -> None:
        """Lock nothing yet. `say`: reports a lock that is taken over, or waited for."""
        self._folder, self._path, self._say = folder, folder / NAME, say
        self._heartbeat, self._stale = heartbeat, stale
        self._me = this_process()
        self._mine = json.dumps(dataclasses.asdict(self._me)).encode()
        self._made: list[Path] = []  # folders, from the innermost
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="run lock", daemon=True)

    def acquire(self) -> None:
        """Make the folder and its lock; the lock of a process that has ended is taken over.

        A lock of another machine is watched for up to `stale` seconds. Raises InputError if the
        owner is alive, and if the folder cannot be written.
        """
        try:
            self._made = [
                path for path in (self._folder, *self._folder.parents) if not path.exists()
            ]
            self._folder.mkdir(parents=True, exist_ok=True)
            self._wait()
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{self._folder} is a file, a broken link, or below one, not a directory; "
                "choose another --output-dir"
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot write {self._path}: {error.strerror}; "
                "free space, or choose another --output-dir"
            ) from error
        self._thread.start()

    def confirm(self) -> None:
        """Raise LockLost if another process took the lock over, as after a long suspension."""
        if self._lost:
            raise LockLost(
                f"lost the lock on {self._folder}: "
                "another process took it over while this one was suspended; stopping"
            )

    def release(self) -> None:
        """Remove the lock, and the folders that `acquire` made, if they are empty."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            if self._path.read_bytes() == self._mine:
                self._path.unlink()
        with contextlib.suppress(OSError):  # unless something is in it
            for folder in self._made:
                folder.rmdir()

    def _wait(self) -> None:
        """Wait until the lock is made. Raises InputError if its owner is alive."""
        watched: _Seen | None = None
        since = time.monotonic()
        while not self._create():
            seen = self._read()
            if seen is None:  # released meanwhile
                continue
            owner = parse_owner(seen[0])
            if owner is not None and is_here(owner):
                if not has_ended(owner):
                    raise self._refused(owner)
                self._take_over(seen, owner)
                continue
            if watched is None or seen[0] != watched[0]:
                watched, since = seen, time.monotonic()
                self._say(
                    f"{self._folder} is locked by {named_owner(owner)}; "
                    f"waiting up to {self._stale:g} s for a heartbeat"
                )
            elif seen != watched:
                raise self._refused(owner)
            elif time.monotonic() - since > self._stale:
                self._take_over(seen, owner)
            time.sleep(min(1.0, self._stale / 20))

    def _create(self) -> bool:
        """Make the lock, unless there is one. Raises OSError."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._mine)
        except OSError:  # others would wait for a lock without an owner
            self._path.unlink(missing_ok=True)
            raise
        return True

    def _read(self) -> _Seen | None:
        """The current lock; opening the file makes a network file system ask its server."""
        try:
            with self._path.open("rb") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def _take_over(self, seen: _Seen, owner: Owner | None) -> None:
        """Remove an abandoned lock, unless another process has done so."""
        with _alone(self._folder):
            if self._read() == seen:
                self._path.unlink()
                self._say(
                    f"{self._path} was left by {named_owner(owner)}, which has ended; "
                    "this process takes over"
                )

    def _refused(self, owner: Owner | None) -> InputError:
        return InputError(
            f"{self._folder} is in use by {named_owner(owner)}; "
            "wait for its end or stop it, or choose another --output-dir "
            f"(if that process has certainly ended, delete {self._path})"
        )

    def _renew(self) -> None:
        """In the thread: the heartbeat; a lock that was deleted is made again."""
        while not self._over.wait(self._heartbeat):
            with contextlib.suppress(OSError):
                seen = self._read()
                if seen is None:
                    self._create()
                elif seen[0] == self._mine:
                    os.utime(self._path)
                else:
                    self._lost = True


@contextlib.contextmanager
def hold(folder: Path, say: Say, one_process: bool = False) -> Iterator[RunLock]:
    """Lock a folder; process 0 holds the lock for all. Raises InputError as `RunLock.acquire` does.

    `one_process`: the program is one process; JAX is not asked, which would initialise its devices.
    """
    lock = RunLock(folder, say)
    try:
        if one_process:
            lock.acquire()
        else:
            on_primary(lock.acquire)
        yield lock
    finally:
        lock.release()


def current_owner(folder: Path) -> Owner | None:
    """The process that has locked a folder; None without a lock, and where its owner has ended.

    That a process on another machine has ended is not known before its lock is `STALE`, so it is
    returned.
    """
    try:
        owner = parse_owner((folder / NAME).read_bytes())
    except OSError:
        return None
    return None if owner is not None and is_here(owner) and has_ended(owner) else owner


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Exclude other processes of this machine; network file systems may not support it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
