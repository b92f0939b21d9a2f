"""Copies on this machine's disk of many objects of a bucket."""

import concurrent.futures
import shutil
from collections.abc import Mapping
from pathlib import Path

from deepjax.errors import InputError
from deepjax.progress import counter
from deepjax.storage.bucket import Bucket

_THREADS = 16
_SPARE = 2**28  # bytes of the disk that a copy leaves free


def copy_objects(bucket: Bucket, sizes: Mapping[str, int], folder: Path) -> None:
    """Download the objects that a folder does not have in their size, several at a time.

    sizes: bytes of each object by name. Raises InputError where the disk has too little space;
    BucketError, FileNotFoundError and OSError as `Bucket.download` does.
    """
    missing = [name for name, size in sizes.items() if _size(folder / name) != size]
    if not missing:
        return
    _require_space(bucket.url, sum(sizes[name] for name in missing), folder)
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        with counter(f"copying {bucket.url}", len(missing), "file") as advance:
            downloads = [pool.submit(bucket.download, name, folder / name) for name in missing]
            for download in concurrent.futures.as_completed(downloads):
                download.result()
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)


def _require_space(url: str, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise InputError(
            f"a copy of {url} needs {needed / 1e9:.1f} GB below {folder}, which has "
            f"{free / 1e9:.1f} GB; free space, let XDG_CACHE_HOME name a folder of another disk, "
            "or mount the bucket (gcsfuse) and give that path"
        )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
