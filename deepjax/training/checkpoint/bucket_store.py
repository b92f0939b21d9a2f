"""Checkpoints in a bucket: a checkpoint is complete when its manifest, written last, is there.

checkpoints/STEP.OWNER/ holds the files that checkpoints/STEP/ has on a disk. OWNER is the number of
the lock's owner, so that two owners never write objects of one name. Each process has a copy of
the newest checkpoint in its own folder, which is used if its manifest is that of the bucket.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from deepjax.storage.bucket import Bucket, BucketError
from deepjax.training.checkpoint.manifest import NAME as MANIFEST
from deepjax.training.checkpoint.manifest import (
    change_manifest,
    manifest_text,
    parse_manifest,
    problems,
    read_manifest,
)

THREADS = 8  # that transfer files of a checkpoint
CORRUPT = "manifest.corrupt.json"
_FOLDER = re.compile(r"checkpoints/(?P<step>\d+)\.(?P<owner>\d+)/")


class BucketStore:
    """Complete checkpoints below a URL, and a folder of this process for copies of them."""

    is_shared = False

    def __init__(
        self,
        bucket: Bucket,
        folder: Path,
        owner: int = 0,
        before_commit: Callable[[], None] = lambda: None,
        copies: Literal["newest", "all"] = "newest",
    ) -> None:
        """owner: the number of the lock. before_commit: writes the log, and checks the lock.

        copies: which of them stay in the folder.
        """
        self.folder, self._copies = folder, copies
        self._bucket, self._owner, self._before_commit = bucket, owner, before_commit

    def clear(self) -> None:
        """Make the folder, and delete what interrupted saves left in the bucket."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        sizes = self._bucket.sizes("checkpoints")
        complete = {
            name.rpartition("/")[0] for name in sizes if name.endswith((f"/{MANIFEST}", CORRUPT))
        }
        self._bucket.delete(
            name
            for name in sizes
            if (found := _FOLDER.match(name)) and found[0].rstrip("/") not in complete
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a manifest, oldest first."""
        return sorted(self._prefixes())

    def open(self, step: int) -> Path:
        """A copy of a checkpoint in the folder; older copies are deleted."""
        folder, prefix = self.folder / str(step), self._prefix(step)
        try:
            manifest = self._bucket.read(f"{prefix}/{MANIFEST}")
            for _ in range(2):  # again where a copy, or what arrived, has defects
                if _bytes_of(folder / MANIFEST) != manifest or problems(folder):
                    self._fetch(prefix, manifest, folder)
        except FileNotFoundError as error:
            raise BucketError(f"{self.name(step)} was deleted meanwhile") from error
        self._keep_only(folder)
        return folder

    def commit(self, partial: Path) -> None:
        """Write every file of STEP.partial, and its manifest last; keep the copy as STEP."""
        step = int(partial.name.partition(".")[0])
        prefix = f"checkpoints/{step}.{self._owner:08d}"
        files = read_manifest(partial)["files"]
        with ThreadPoolExecutor(THREADS) as threads:
            _finish(
                threads.map(
                    lambda name: self._bucket.upload(partial / name, f"{prefix}/{name}"), files
                )
            )
        there = self._bucket.sizes(prefix)
        for name, file in files.items():
            if there.get(f"{prefix}/{name}") != file["bytes"]:
                raise BucketError(
                    f"{self._bucket.url}/{prefix}/{name} has {there.get(f'{prefix}/{name}')} bytes "
                    f"after it was written, not {file['bytes']}"
                )
        self._before_commit()
        self._bucket.upload(partial / MANIFEST, f"{prefix}/{MANIFEST}")
        copy = self.folder / str(step)
        shutil.rmtree(copy, ignore_errors=True)
        partial.rename(copy)
        self._keep_only(copy)

    def remove(self, step: int) -> None:
        """Delete a checkpoint's manifest, then its files."""
        for prefix in self._all_prefixes(step):
            names = self._bucket.sizes(prefix)
            first = [name for name in names if name.endswith(f"/{MANIFEST}")]
            self._bucket.delete([*first, *names])
        shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def set_aside(self, step: int) -> str:
        """Rename the manifest of a checkpoint, which then is none."""
        prefix = self._prefix(step)
        self._bucket.write(f"{prefix}/{CORRUPT}", self._bucket.read(f"{prefix}/{MANIFEST}"))
        self._bucket.delete([f"{prefix}/{MANIFEST}"])
        shutil.rmtree(self.folder / str(step), ignore_errors=True)
        return f"{prefix}/{CORRUPT}"

    def facts(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint."""
        return parse_manifest(self._bucket.read(f"{self._prefix(step)}/{MANIFEST}"))

    def change_facts(self, step: int, **facts: Any) -> None:
        """Change some facts of a manifest at once."""
        name = f"{self._prefix(step)}/{MANIFEST}"
        changed = manifest_text(parse_manifest(self._bucket.read(name)) | facts)
        self._bucket.write(name, changed.encode())
        if (self.folder / str(step)).is_dir():
            change_manifest(self.folder / str(step), **facts)

    def name(self, step: int) -> str:
        """The URL of a checkpoint."""
        return f"{self._bucket.url}/checkpoints/{step}"

    def __str__(self) -> str:
        """The URL of the checkpoints."""
        return f"{self._bucket.url}/checkpoints"

    def copy_all(self, with_files: bool) -> None:
        """Make the folder hold all checkpoints, with the manifest alone or with all files."""
        steps = self.steps()
        for path in self.folder.glob("*"):
            if not (path.name.isdigit() and int(path.name) in steps):
                shutil.rmtree(path, ignore_errors=True)
        for step in steps:
            if with_files:
                self.open(step)
            else:
                folder = self.folder / str(step)
                folder.mkdir(parents=True, exist_ok=True)
                self._bucket.download(f"{self._prefix(step)}/{MANIFEST}", folder / MANIFEST)

    def _prefixes(self) -> dict[int, str]:
        """The prefix of each complete checkpoint by step: that of the highest owner."""
        found = {}
        for name in self._bucket.sizes("checkpoints"):  # in order
            place = _FOLDER.match(name)
            if place and name == f"{place[0]}{MANIFEST}":
                found[int(place["step"])] = place[0].rstrip("/")
        return found

    def _prefix(self, step: int) -> str:
        try:
            return self._prefixes()[step]
        except KeyError:
            raise BucketError(f"{self.name(step)} was deleted meanwhile") from None

    def _all_prefixes(self, step: int) -> set[str]:
        found = map(_FOLDER.match, self._bucket.sizes("checkpoints"))
        return {each[0].rstrip("/") for each in found if each and int(each["step"]) == step}

    def _fetch(self, prefix: str, manifest: bytes, folder: Path) -> None:
        """Write what a manifest names as files, and the manifest last.

        Files of a corrupt manifest are not fetched, and one that is missing is left out:
        verification names both.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            files = list(parse_manifest(manifest)["files"])
        except ValueError:
            files = []

        def fetch(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._bucket.download(f"{prefix}/{name}", folder / name)

        with ThreadPoolExecutor(THREADS) as threads:
            _finish(threads.map(fetch, files))
        (folder / MANIFEST).write_bytes(manifest)

    def _keep_only(self, kept: Path) -> None:
        """Delete the copies of other checkpoints, unless all are kept."""
        for path in self.folder.iterdir() if self._copies == "newest" else ():
            if path != kept and path.name.isdigit():
                shutil.rmtree(path, ignore_errors=True)


def _finish(results: Iterable[None]) -> None:
    """Wait for all transfers; raises the first error."""
    for _ in results:
        pass


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
