"""The process that owns a run directory: on which machine it runs, and whether it has ended."""

import dataclasses
import json
import os
import platform
import subprocess
import time
import uuid
from pathlib import Path

_HIDDEN = "hidden"  # start time of a process of another user that the system hides


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process on any machine, and when it took the lock."""

    host: str
    machine: str
    """Boot id and pid namespace: if both are equal, process ids are comparable."""
    pid: int
    started: str
    """Start time of the process, as its system gives it: process ids are reused."""
    since: str
    token: str
    """Unique, to distinguish locks of one process."""

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.since}"


def this_process() -> Owner:
    """The owner that this process is."""
    return Owner(
        platform.node(),
        _machine(),
        os.getpid(),
        _started(os.getpid()) or "",
        time.strftime("%Y-%m-%d %H:%M:%S"),
        uuid.uuid4().hex,
    )


def is_here(owner: Owner) -> bool:
    """Whether an owner is, or was, a process of this machine."""
    return bool(owner.machine) and (owner.host, owner.machine) == (platform.node(), _machine())


def has_ended(owner: Owner) -> bool:
    """Whether an owner of this machine has ended."""
    return _started(owner.pid) not in (owner.started, _HIDDEN)


def named_owner(owner: Owner | None) -> str:
    """An owner for messages; None for one that a lock does not name."""
    return str(owner or "an unidentified process (incomplete lock file)")


def parse_owner(content: bytes) -> Owner | None:
    """The owner in a lock; None for a lock that is incomplete or corrupt."""
    try:
        owner = Owner(**json.loads(content))
        return owner if 0 < owner.pid < 2**31 else None
    except (ValueError, TypeError):
        return None


def _machine() -> str:
    """Boot id and pid namespace, or "": they differ between machines and containers of one name."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time of a process of this machine, as the system gives it; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:  # no such process, a hidden one of another user, or a system without /proc
        pass
    try:
        os.kill(pid, 0)
        command = ["/bin/ps", "-o", "lstart=", "-p", str(pid)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        return found.stdout.strip() or None
    except ProcessLookupError:
        return None
    except OSError:
        return _HIDDEN
