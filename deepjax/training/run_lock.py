"""The lock of a run directory, so that two processes never write in it at a time.

The lock is the file `run.lock`, made with O_EXCL, which is atomic on network file systems too (flock is not). It names its owner by
host, process and start time. The owner renews the file's time of modification; no two clocks are compared.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from deepjax.errors import InputError
from deepjax.training.distributed.collectives import on_primary

NAME = "run.lock"
HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one after which the owner on another machine is taken for dead

_HIDDEN = "hidden"  # a process of another user, of which the system says no more

Say = Callable[[str], None]
_Seen = tuple[bytes, int]  # content of the lock and time of its last renewal


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process, anywhere, and since when it has the lock."""

    host: str
    machine: str
    """Boot and namespace of processes: where both are equal, process ids are of the same machine."""
    pid: int
    started: str
    """When the process began, as its system says it: process ids are used again."""
    since: str
    token: str
    """Unique, so that a lock is never taken for another one of the same process."""

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.since}"


class LockLost(InputError):
    """Another process has taken the run directory over."""


class RunLock:
    """The lock of one directory: `acquire`, `confirm` now and then, `release`."""

    def __init__(
        self, folder: Path, say: Say, heartbeat: float = HEARTBEAT, stale: float = STALE
    ) -> None:
        """Nothing is locked yet. `say`: what is told of a lock that is taken over, or waited for."""
        self._folder, self._path, self._say = folder, folder / NAME, say
        self._heartbeat, self._stale = heartbeat, stale
        self._me = Owner(
            platform.node(),
            _machine(),
            os.getpid(),
            _started(os.getpid()) or "",
            _now(),
            uuid.uuid4().hex,
        )
        self._mine = json.dumps(dataclasses.asdict(self._me)).encode()
        self._made: list[Path] = []  # folders, from the innermost
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="run lock", daemon=True)

    def acquire(self) -> None:
        """Make the folder and its lock; the lock of a process that has ended is taken over.

        A lock of another machine is watched for up to `stale` seconds. Raises InputError when the owner lives, and when the folder
        cannot be written.
        """
        try:
            self._made = [
                path for path in (self._folder, *self._folder.parents) if not path.exists()
            ]
            self._folder.mkdir(parents=True, exist_ok=True)
            self._wait()
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{self._folder} is a file, a broken link, or below one, not a directory; choose another --output-dir"
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot write {self._path}: {error.strerror}; free space, or choose another --output-dir"
            ) from error
        self._thread.start()

    def confirm(self) -> None:
        """Raise LockLost when another process has taken the lock over, as it may after a long suspension."""
        if self._lost:
            raise LockLost(
                f"lost the lock on {self._folder}: another process took it over while this one was suspended; stopping"
            )

    def release(self) -> None:
        """Remove the lock, and the folders that `acquire` made where nothing is in them."""
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
        """Until the lock is made. Raises InputError when its owner lives."""
        watched: _Seen | None = None
        since = time.monotonic()
        while not self._create():
            seen = self._read()
            if seen is None:  # released meanwhile
                continue
            owner = _parse(seen[0])
            if owner is not None and self._is_here(owner):
                if _started(owner.pid) in (owner.started, _HIDDEN):
                    raise self._refused(owner)
                self._take_over(seen, owner)
                continue
            if watched is None or seen[0] != watched[0]:
                watched, since = seen, time.monotonic()
                self._say(
                    f"{self._folder} is locked by {_named(owner)}; waiting up to {self._stale:g} s for a heartbeat"
                )
            elif seen != watched:
                raise self._refused(owner)
            elif time.monotonic() - since > self._stale:
                self._take_over(seen, owner)
            time.sleep(min(1.0, self._stale / 20))

    def _is_here(self, owner: Owner) -> bool:
        return bool(owner.machine) and (owner.host, owner.machine) == (
            self._me.host,
            self._me.machine,
        )

    def _create(self) -> bool:
        """Make the lock, unless there is one. Raises OSError."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._mine)
        except OSError:  # a lock without an owner would keep everyone waiting
            self._path.unlink(missing_ok=True)
            raise
        return True

    def _read(self) -> _Seen | None:
        """The lock as it is now; opening the file makes a network file system ask its server."""
        try:
            with self._path.open("rb") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def _take_over(self, seen: _Seen, owner: Owner | None) -> None:
        """Remove a lock that nobody holds, unless another process has done so."""
        with _alone(self._folder):
            if self._read() == seen:
                self._path.unlink()
                self._say(
                    f"{self._path} was left by {_named(owner)}, which has ended; this process takes over"
                )

    def _refused(self, owner: Owner | None) -> InputError:
        return InputError(
            f"{self._folder} is in use by {_named(owner)}; wait for its end or stop it, or choose another --output-dir "
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
    """The lock of a folder for a block of code; process 0 holds it for all. Raises InputError as `RunLock.acquire` does.

    `one_process`: the program is known to be one process; JAX is not asked, which would initialise its devices.
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


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from taking over at the same moment; network file systems may not support it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _named(owner: Owner | None) -> str:
    return str(owner or "an unidentified process (incomplete lock file)")


def _parse(content: bytes) -> Owner | None:
    """The owner that a lock names; None for a lock that is being written, or damaged."""
    try:
        owner = Owner(**json.loads(content))
        return owner if 0 < owner.pid < 2**31 else None
    except (ValueError, TypeError):
        return None


def _machine() -> str:
    """What tells machines of one name apart, containers and reboots too; empty where the system does not say it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process of this machine began, in its system's words; None when it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except (
        OSError
    ):  # no such process, one of another user that is hidden, or a system without /proc
        pass
    try:
        os.kill(pid, 0)
        command = ["/bin/ps", "-o", "lstart=", "-p", str(pid)]
        return (
            subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            or None
        )  # noqa: S603
    except ProcessLookupError:
        return None
    except OSError:
        return _HIDDEN


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
