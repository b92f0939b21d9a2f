"""The lock of a run directory in a bucket.

Owners are numbered: who creates the object run.lock/NUMBER, which the server lets one process do,
owns the directory until a higher number exists. The owner renews run.lock/NUMBER.alive; a lock
whose owner wrote .released, has ended on this machine, or does not renew it, may be followed by
the next number. Numbers are never used again, so that what a suspended owner still writes (a
checkpoint, a part of a log) has a name of its own. No two clocks are compared.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable

from deepjax.errors import InputError
from deepjax.owner import Owner, has_ended, is_here, named_owner, parse_owner, this_process
from deepjax.storage.bucket import Bucket, BucketError

FOLDER = "run.lock"
HEARTBEAT = 10.0  # seconds between two renewals
STALE = 60.0  # seconds without one after which an owner on another machine counts as dead
_ALIVE, _RELEASED = ".alive", ".released"

Say = Callable[[str], None]


class BucketLock:
    """The lock of one prefix: `acquire`, `is_lost` now and then, `release`."""

    def __init__(
        self, bucket: Bucket, say: Say, heartbeat: float = HEARTBEAT, stale: float = STALE
    ) -> None:
        """Lock nothing yet. `say`: reports a lock that is taken over, or waited for."""
        self._bucket, self._say = bucket, say
        self._heartbeat, self._stale = heartbeat, stale
        self._mine = json.dumps(dataclasses.asdict(this_process())).encode()
        self._over = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, name="bucket lock", daemon=True)
        self.number = 0
        """Of this owner, from 1; unique among all owners there ever were."""

    def acquire(self) -> None:
        """Become the owner; waits up to `stale` seconds for a sign of life of another machine.

        Raises InputError if the owner is alive, and if the bucket cannot be written.
        """
        try:
            while not self.number:
                last = self._last()
                if last:
                    self._require_over(last)
                if self._bucket.create(_name(last + 1), self._mine):
                    self.number = last + 1
            self._bucket.delete(
                name for name in self._bucket.sizes(FOLDER) if _number(name) < self.number
            )
        except BucketError as error:
            raise InputError(f"{error}; check the URL and your permissions") from error
        self._thread.start()

    def is_lost(self) -> bool:
        """Whether another process has followed, as far as the last renewal knows."""
        return self._lost

    def check(self) -> bool:
        """Ask the bucket whether this process is the owner still. Raises BucketError."""
        self._lost = self._lost or self._last() > self.number
        return not self._lost

    def release(self) -> None:
        """Let the next process follow at once; a bucket that cannot be reached is no error."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.number and not self._lost:
            with contextlib.suppress(BucketError):
                self._bucket.write(_name(self.number) + _RELEASED, self._mine)

    def _last(self) -> int:
        """The highest number, or 0."""
        return max(map(_number, self._bucket.sizes(FOLDER)), default=0)

    def _require_over(self, number: int) -> None:
        """Return once an owner is known to have ended. Raises InputError if it is alive."""
        name = _name(number)
        owner = parse_owner(self._read(name))
        if self._read(name + _RELEASED):
            return
        if owner is not None and is_here(owner):
            if not has_ended(owner):
                raise self._refused(owner, name)
        elif self._watch(name, owner):
            return
        self._say(
            f"{self._bucket.url} was left by {named_owner(owner)}, which has ended; "
            "this process takes over"
        )

    def _watch(self, name: str, owner: Owner | None) -> bool:
        """True if an owner releases its lock, False if it is silent for `stale` seconds.

        Raises InputError for a sign of life.
        """
        self._say(
            f"{self._bucket.url} is locked by {named_owner(owner)}; "
            f"waiting up to {self._stale:g} s for a heartbeat"
        )
        since, seen = time.monotonic(), self._read(name + _ALIVE)
        while time.monotonic() - since < self._stale:
            time.sleep(min(2.0, self._stale / 20))
            if self._read(name + _RELEASED):
                return True
            if self._read(name + _ALIVE) != seen:
                raise self._refused(owner, name)
        return False

    def _read(self, name: str) -> bytes:
        try:
            return self._bucket.read(name)
        except FileNotFoundError:
            return b""

    def _refused(self, owner: Owner | None, name: str) -> InputError:
        return InputError(
            f"{self._bucket.url} is in use by {named_owner(owner)}; "
            "wait for its end or stop it, or choose another --output-dir "
            f"(if that process has certainly ended, delete {self._bucket.url}/{name})"
        )

    def _renew(self) -> None:
        """In the thread: the heartbeat, until a higher number exists."""
        count = 0
        while not self._over.wait(self._heartbeat):
            count += 1
            with contextlib.suppress(BucketError):
                if not self.check():
                    return
                self._bucket.write(_name(self.number) + _ALIVE, str(count).encode())


def lock_of(bucket: Bucket) -> bytes:
    """What the owner of a prefix wrote into its lock; empty where none has locked it.

    Raises BucketError.
    """
    names = bucket.sizes(FOLDER)
    last = _name(max(map(_number, names), default=0))
    return b"" if last not in names or last + _RELEASED in names else bucket.read(last)


def _name(number: int) -> str:
    return f"{FOLDER}/{number:08d}"


def _number(name: str) -> int:
    """The number in the name of a lock's object; 0 for another object."""
    digits = name.removeprefix(f"{FOLDER}/").partition(".")[0]
    return int(digits) if digits.isdecimal() else 0
