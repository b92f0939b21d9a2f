"""A run directory's files in a bucket: fetched at the start, written while the run goes on.

Checkpoints are not among them (`training.checkpoint.bucket_store`). The bucket has what the local
folder had at the last `push`: files that grow as parts, others completely. Each object is written
at once, so a reader never sees half of a file.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from deepjax.io import write_bytes
from deepjax.storage.bucket import Bucket, BucketError
from deepjax.storage.parts import current_parts, is_part, part_name

SECONDS = 20.0  # between two writes in the background
TRIES = 5  # to read a file in parts that its writer deletes meanwhile
MOST_PARTS = 100  # of one file, before it is rewritten
GROWS = re.compile(r".*\.jsonl|.*\.tfevents\..*|(?:.*/)?events\.out\..*")
NOT_MIRRORED = ("checkpoints/", "run.lock")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _Written:
    """What the bucket has of a file."""

    state: tuple[int, ...] = ()
    """Inode, size and time of the file, by which a change is seen."""
    size: int = 0
    digest: str = ""
    parts: int = 0
    rewrite: int = 0


class Mirror:
    """Writes what changes below a folder to a bucket; one thread at a time."""

    def __init__(self, bucket: Bucket, folder: Path, owner: int, say: Say) -> None:
        """owner: the number of the lock's owner, for names of parts."""
        self._bucket, self._folder, self._owner, self._say = bucket, folder, owner, say
        self._written: dict[str, _Written] = {}
        self._alone = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bucket mirror", daemon=True)
        self._has_failed = False

    def start(self, seconds: float = SECONDS) -> None:
        """Write changes every so many seconds from now on."""
        self._seconds = seconds
        self._thread.start()

    def push(self) -> None:
        """Write what changed. Raises BucketError, and OSError of a local file."""
        with self._alone:
            for name, path in _files(self._folder).items():
                self._push_file(name, path)

    def close(self) -> None:
        """Write everything, files that grew as one object each. Raises BucketError."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self.push()
        names = self._bucket.sizes()
        for file in current_parts(names):
            self._bucket.upload(self._folder / file, file)
        self._bucket.delete(name for name in names if is_part(name))

    def _push_file(self, name: str, path: Path) -> None:
        facts, before = path.stat(), self._written.get(name, _Written())
        state = facts.st_ino, facts.st_size, facts.st_mtime_ns
        if state == before.state:
            return
        if GROWS.fullmatch(name):
            self._written[name] = dataclasses.replace(self._push_part(name, path), state=state)
        else:
            self._bucket.upload(path, name)
            self._written[name] = _Written(state)

    def _push_part(self, name: str, path: Path) -> _Written:
        """Write what was appended to a file, or all of it where it was rewritten."""
        before, data = self._written.get(name), path.read_bytes()
        if before and before.parts < MOST_PARTS and _digest(data[: before.size]) == before.digest:
            start, parts, rewrite = before.size, before.parts + 1, before.rewrite
        else:
            start, parts, rewrite = 0, 1, before.rewrite + 1 if before else 0
        self._bucket.write(part_name(name, self._owner, rewrite, start), data[start:])
        if start == 0:
            self._delete_older(name, rewrite)
        return _Written((), len(data), _digest(data), parts, rewrite)

    def _delete_older(self, name: str, rewrite: int) -> None:
        """Delete the parts of earlier generations, which readers no longer join."""
        first = part_name(name, self._owner, rewrite, 0)
        older = [each for each in self._bucket.sizes(f"{name}.parts") if each < first]
        self._bucket.delete(older)

    def _run(self) -> None:
        """In the thread: push; a failure is reported once, until a push succeeds."""
        while not self._over.wait(self._seconds):
            try:
                self.push()
                self._has_failed = False
            except OSError as error:
                if not self._has_failed:
                    self._say(f"{error}; tried again later, training continues")
                self._has_failed = True


def fetch_files(bucket: Bucket, folder: Path) -> None:
    """Make a folder hold the files of a run directory in a bucket, but for checkpoints and lock.

    Raises BucketError.
    """
    sizes = bucket.sizes()
    joined = current_parts(sizes)
    for name, path in _files(folder).items():
        if name not in sizes and name not in joined:
            path.unlink()
    for name in sizes:
        if is_mirrored(name) and not is_part(name) and name not in joined:
            with contextlib.suppress(FileNotFoundError):  # deleted since
                bucket.download(name, folder / name)
                _set_time(bucket, name, folder / name)
    for file, parts in joined.items():
        write_bytes(folder / file, read_grown(bucket, file))
        _set_time(bucket, parts[-1], folder / file)


def _set_time(bucket: Bucket, name: str, path: Path) -> None:
    """Give the copy of a log the time of its last rows."""
    if GROWS.fullmatch(path.name):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (time := bucket.modified(name), time))


def read_grown(bucket: Bucket, file: str) -> bytes:
    """A file that may be in parts; empty where there is none. Raises BucketError."""
    for _ in range(TRIES):
        sizes = bucket.sizes(f"{file}.parts")
        try:
            parts = current_parts(sizes).get(file)
            return b"".join(map(bucket.read, parts)) if parts else bucket.read(file)
        except FileNotFoundError:  # rewritten, or no such file
            if not sizes:
                return b""
    raise BucketError(f"cannot read {bucket.url}/{file}: its parts change too often")


def is_mirrored(name: str) -> bool:
    """Whether a file of a run directory is neither of a checkpoint nor of the lock."""
    return not name.startswith(NOT_MIRRORED)


def _files(folder: Path) -> dict[str, Path]:
    """The files to mirror, by name."""
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".partial"
    }
    return {name: path for name, path in sorted(found.items()) if is_mirrored(name)}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
