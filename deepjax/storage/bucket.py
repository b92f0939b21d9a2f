"""The objects below a prefix of a bucket: read, written and created with retries.

fsspec's drivers do the work. Every failure is one line without credentials.
"""

import contextlib
import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from deepjax.storage.url import is_safe_name, require_driver

CONNECT_SECONDS = 10
READ_SECONDS = 60
PATIENCE = 120.0  # seconds for which an operation is retried
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0

Result = TypeVar("Result")
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # on which a download is written
_SECRET = re.compile(
    r"(?i)((?:x-amz-\w[\w-]*|signature|awsaccesskeyid|access_token|token|key|secret)=)[^&\s'\"]+"
)


class BucketError(OSError):
    """An operation that failed after all retries; its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = message


class Bucket:
    """The objects below a URL, by names relative to it."""

    def __init__(self, url: str, patience: float | None = None) -> None:
        """url: from `parse_url`. Raises InputError where the driver is not installed.

        patience: seconds for which an operation is retried, default PATIENCE.
        """
        require_driver(url)
        self.url, self._patience = url, PATIENCE if patience is None else patience
        self._files, self._root = _open(url)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of each object by name, of those below a prefix; names in order.

        Raises BucketError, also for a name that would leave the prefix.
        """
        root = f"{self._root}/{prefix}".rstrip("/")
        found = self._retry("list", prefix, lambda: self._files.find(root, detail=True))
        sizes = {
            path.removeprefix(f"{self._root}/"): int(facts["size"] or 0)
            for path, facts in sorted(found.items())
            if path != self._root and not path.endswith("/")  # empty objects as folders
        }
        for name in sizes:
            if not is_safe_name(name):
                raise BucketError(f"{self.url} has an object of the name {name!r}; delete it")
        return sizes

    def modified(self, name: str) -> float:
        """When an object was written, in seconds since 1970. Raises as `read` does."""
        return self._retry("read", name, lambda: self._files.modified(self._path(name))).timestamp()

    def read(self, name: str) -> bytes:
        """The bytes of an object. Raises FileNotFoundError and BucketError."""
        return self._retry("read", name, lambda: self._files.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write an object, or replace it at once. Raises BucketError."""
        self._write(name, lambda: self._files.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Create an object unless it exists, atomically: of several creators one succeeds.

        data: unique to the creator, so that a creation whose answer was lost is recognised.
        Raises BucketError.
        """

        def act() -> None:
            self._files.pipe_file(self._path(name), data, mode="create")

        try:
            self._write(name, act)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                return self.read(name) == data
            return False
        return True

    def upload(self, path: Path, name: str) -> None:
        """Write a file as an object. Raises BucketError, and OSError of the file."""
        path.stat()
        self._write(name, lambda: self._files.put_file(str(path), self._path(name)))

    def download(self, name: str, path: Path) -> None:
        """Write an object as a file, completely or not at all. Raises as `read` does."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")

        def act() -> None:
            self._files.get_file(self._path(name), str(partial))

        try:
            self._retry("read", name, act)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects in this order; those that are gone are no error. Raises BucketError."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._retry("delete", name, lambda n=name: self._files.rm_file(self._path(n)))

    def _path(self, name: str) -> str:
        if not is_safe_name(name):
            raise BucketError(f"{name!r} is no name of an object below {self.url}")
        return f"{self._root}/{name}"

    def _write(self, name: str, act: Callable[[], None]) -> None:
        try:
            self._retry("write", name, act)
        except FileNotFoundError as error:
            raise BucketError(f"cannot write {self.url}/{name}: there is no such bucket") from error

    def _retry(self, verb: str, name: str, act: Callable[[], Result]) -> Result:
        """Try until the time is over; what cannot change is raised at once."""
        begin, delay = time.monotonic(), FIRST_DELAY
        while True:
            try:
                return act()
            except (FileNotFoundError, FileExistsError, BucketError):
                raise
            except Exception as error:  # each driver raises kinds of its own
                if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                    raise
                over = time.monotonic() - begin + delay > self._patience
                if over or _is_refusal(error):
                    target = f"{self.url}/{name}".rstrip("/")
                    raise BucketError(f"cannot {verb} {target}: {one_line(error)}") from error
            time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # no secret
            delay = min(2 * delay, LONGEST_DELAY)


def _is_refusal(error: Exception) -> bool:
    """Whether another try would be refused too: for want of a permission or of credentials."""
    code = str(getattr(error, "code", ""))
    return (
        isinstance(error, PermissionError)
        or "Credentials" in type(error).__name__
        or code in ("400", "401", "403")
    )


def one_line(error: BaseException) -> str:
    """An error of a driver in one line, without what may be a credential."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return _SECRET.sub(r"\1...", text)[:300]


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL and its path there, without caches of listings."""
    import fsspec  # with the drivers, which are extras

    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith("s3:"):
        logging.getLogger("asyncio").addFilter(_not_of_s3_at_exit)
        options["config_kwargs"] = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"max_attempts": 1},
        }
    else:
        options["requests_timeout"] = READ_SECONDS
        # It logs a stack for what it raises too, and that it takes a bucket for a plain one.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    return fsspec.core.url_to_fs(url, **options)


def _not_of_s3_at_exit(record: logging.LogRecord) -> bool:
    """False for what asyncio logs where the program ends while s3fs closes its connections."""
    return "ClientCreatorContext.__aexit__" not in record.getMessage()
