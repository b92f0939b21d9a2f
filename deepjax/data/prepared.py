"""Prepared data sets, in a folder or in a bucket, of which this machine keeps a copy."""

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepjax.data.catalog import Dataset
from deepjax.data.embedded import EMBEDDED
from deepjax.data.fingerprint import FINGERPRINT_FILE, REPREPARE_HINT, check_fingerprint
from deepjax.errors import InputError, require
from deepjax.paths import user_path
from deepjax.storage.bucket import Bucket, BucketError
from deepjax.storage.copies import copy_objects
from deepjax.storage.local import alone_in, copy_folder
from deepjax.storage.url import is_url, parse_url

_RECORDS = re.compile(r".*-\d{5}-of-\d{5}")  # names of shards; other files describe them


def data_directory(data_dir: str | None = None) -> Path:
    """The folder of prepared data sets: the argument, $TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises InputError for a URL.
    """
    named, field = _named(data_dir)
    allowed = "a folder of this machine: prepare data there, and copy that folder to the bucket"
    require(not is_url(named), field, named, allowed)
    return user_path(named, field)


def find_builder(dataset: Dataset, data_dir: str | None = None) -> Any:
    """The tfds builder of a data set, which may not be prepared: `is_prepared`.

    data_dir: a folder; or a URL, from which the files that describe the data set are copied to this
    machine, but not its records. Raises InputError where a bucket cannot be read, and what tfds
    raises for a builder that is unknown or corrupt.
    """
    import tensorflow_datasets as tfds

    if dataset.builder in EMBEDDED:
        return tfds.builder_from_directory(EMBEDDED[dataset.builder])
    folder, url = _location(data_dir)
    if url:
        _fetch_description(url, dataset.builder.partition(":")[0])
    return tfds.builder(dataset.builder, data_dir=folder, file_format="array_record")


def is_prepared(dataset: Dataset, data_dir: str | None = None) -> bool:
    """Whether a data set is there, as its folder says; `splits.check_opens` reads it."""
    if dataset.path or dataset.builder in EMBEDDED:
        return True
    try:
        return Path(find_builder(dataset, data_dir).data_path).exists()
    except InputError:
        raise
    except Exception:  # tfds raises its own kinds for a builder that is unknown or corrupt
        return False


def open_builder(dataset: Dataset, data_dir: str | None = None) -> tuple[Any, str]:
    """The builder of a prepared data set, whose records are on this machine, and the fingerprint.

    Raises InputError where it is not prepared, and where a file differs from the fingerprint.
    """
    builder = find_builder(dataset, data_dir)
    if dataset.builder in EMBEDDED:
        return builder, ""
    folder, url = _location(data_dir)
    path = Path(builder.data_path)
    if not path.exists():
        where = f" --data-dir FOLDER, and copy that folder to {url}" if url else ""
        raise InputError(
            f"dataset {dataset.name!r} is not prepared in {url or folder}; "
            f"prepare it with: deepjax data prepare {dataset.name}{where}"
        )
    if url:
        name = path.relative_to(folder).as_posix()
        return builder, _fetch_records(url, name, _digest_of_description(path))
    file = path / FINGERPRINT_FILE
    state = file.stat() if file.exists() else None
    return builder, _check_once(path, state and (state.st_mtime_ns, state.st_size))


def _named(data_dir: str | None) -> tuple[str, str]:
    """What the user named, and the name of the option or variable."""
    if data_dir is None and (named := os.environ.get("TFDS_DATA_DIR")):
        return named, "TFDS_DATA_DIR"
    return "~/tensorflow_datasets" if data_dir is None else data_dir, "data_dir"


def _location(data_dir: str | None) -> tuple[Path, str]:
    """The folder on this machine, and the URL of which it is a copy, else ""."""
    named, field = _named(data_dir)
    if not is_url(named):
        return data_directory(data_dir), ""
    url = parse_url(named, field)
    return copy_folder(url), url


@functools.cache
def _check_once(folder: Path, _: tuple[int, int] | None) -> str:
    """For both splits of a data set."""
    return check_fingerprint(folder)


@functools.cache
def _fetch_records(url: str, name: str, _: str) -> str:
    """Copy the records of a data set, once in a process; returns its fingerprint.

    A copy that differs from the fingerprint is replaced: the disk damaged it, or the bucket has
    another preparation now.
    """
    folder = copy_folder(url) / name
    with _copying(url) as bucket:
        sizes = bucket.sizes(f"{name}/")
        copy_objects(bucket, sizes, copy_folder(url))
        try:
            return check_fingerprint(folder)
        except InputError:
            for path in folder.iterdir():
                path.unlink()
        copy_objects(bucket, sizes, copy_folder(url))
        try:
            return check_fingerprint(folder)
        except InputError as error:
            text = str(error).replace(str(folder), f"{url}/{name}")
            hint = "prepare the data set again and copy it there"
            raise InputError(text.replace(REPREPARE_HINT, hint)) from error


def _fetch_description(url: str, name: str) -> None:
    """Copy what describes a data set, which is small and does not show a change by its size."""
    with _copying(url) as bucket:
        for each in bucket.sizes(f"{name}/"):
            if not _RECORDS.fullmatch(each):
                bucket.download(each, copy_folder(url) / each)


def _digest_of_description(folder: Path) -> str:
    files = (path for path in sorted(folder.iterdir()) if not _RECORDS.fullmatch(path.name))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@contextlib.contextmanager
def _copying(url: str) -> Iterator[Bucket]:
    """The bucket, while this process alone changes its copy. Raises InputError."""
    folder = copy_folder(url)
    try:
        with alone_in(folder):
            yield Bucket(url)
    except FileNotFoundError as error:
        raise InputError(f"{url} changed while it was read; try again") from error
    except BucketError as error:
        raise InputError(f"{error}; check the URL and your permissions") from error
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror or error}; free space, or let XDG_CACHE_HOME "
            "name another folder"
        ) from error
