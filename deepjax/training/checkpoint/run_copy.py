"""Runs in a bucket, for commands that read them: copies in the user's cache folder."""

from collections.abc import Iterator
from pathlib import Path

from deepjax.errors import InputError
from deepjax.paths import AnyPath
from deepjax.storage.bucket import Bucket, BucketError
from deepjax.storage.local import alone_in, copy_folder
from deepjax.storage.lock import FOLDER, lock_of
from deepjax.storage.mirror import fetch_files
from deepjax.storage.url import path_or_url
from deepjax.training.checkpoint.bucket_store import BucketStore

_MARK = "/config.json"
_SOURCE = "copy_of.txt"


def local_run(given: AnyPath, field: str, checkpoints: bool = True) -> Path:
    """The folder of a run: the path that was given, or a copy of what is at the URL.

    checkpoints: with their files, not the manifests alone. The copy is brought up to date; files
    that it has are not transferred again. Raises InputError.
    """
    found = path_or_url(given, field)
    if isinstance(found, Path):
        return found
    folder = copy_folder(found)
    try:
        bucket = Bucket(found)
        with alone_in(folder):
            fetch_files(bucket, folder)
            (folder / FOLDER).write_bytes(lock_of(bucket))
            (folder / _SOURCE).write_text(found)
            store = BucketStore(bucket, folder / "checkpoints", copies="all")
            store.copy_all(with_files=checkpoints)
        _require_run(folder, found)
    except FileNotFoundError as error:
        raise InputError(f"{found} changed while it was read; try again") from error
    except OSError as error:
        raise InputError(
            f"{error.strerror or error}; check the URL and your permissions"
        ) from error
    return folder


def name_of_run(path: Path) -> str:
    """What names a run to its user: the URL of which a folder is a copy, or else the folder."""
    source = path / _SOURCE
    return source.read_text() if source.is_file() else str(path)


def _require_run(folder: Path, url: str) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{url} holds no config.json; allowed: the --output-dir of a training run, which "
            "`deepjax runs list` shows"
        )


def urls_of_runs(url: str) -> Iterator[str]:
    """The runs at or below a URL. Raises InputError."""
    try:
        names = Bucket(url).sizes()
    except BucketError as error:
        raise InputError(f"{error}; check the URL and your permissions") from error
    for name in names:
        if f"/{name}".endswith(_MARK):
            yield f"{url}/{name}".removesuffix(_MARK)


def write_to_run(given: AnyPath, folder: Path, *names: str) -> None:
    """Write files of a run's copy back to its URL; nothing for a run that is a folder."""
    found = path_or_url(given, "run")
    if isinstance(found, Path):
        return
    try:
        bucket = Bucket(found)
        for name in names:
            bucket.upload(folder / name, name)
    except BucketError as error:
        raise InputError(f"{error}; check the URL and your permissions") from error
