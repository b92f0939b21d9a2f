"""Checks of manually downloaded archives, by tfds's sizes and checksums, before hours of work."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepjax.data.catalog import Dataset
from deepjax.data.threads import progress
from deepjax.errors import InputError

REQUIRED_ARCHIVES = {
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    "imagenet2012_real": ("ILSVRC2012_img_val.tar",),
}
_SPACE = 1.05  # tfds sorts the images in a copy of them, which goes as the shards come


def check_archives(dataset: Dataset, builder: Any, manual_dir: str | None, target: Path) -> None:
    """Check the archives in `manual_dir`: names, and size and sha256 where tfds itself does not.

    For a custom data set from the same builder only their presence is checked. Raises InputError,
    also where the disk of `target` is too full.
    """
    if builder.name in REQUIRED_ARCHIVES:
        paths = _found(dataset, REQUIRED_ARCHIVES[builder.name], manual_dir)
        _check_free_space(dataset, paths, target)
        if dataset.name == builder.name:
            known = {url.rsplit("/", 1)[-1]: info for url, info in builder.url_infos.items()}
            for path in paths:
                check_archive(path, known[path.name])
    elif manual_dir is not None:  # then nothing is to be downloaded
        names = [info.filename for info in builder.url_infos.values()]
        if not any((Path(manual_dir) / name).is_file() for name in names):
            raise InputError(
                f"manual_dir {manual_dir} holds none of the archives of {dataset.name!r}: "
                f"{', '.join(names)}"
            )


def _found(dataset: Dataset, names: Sequence[str], manual_dir: str | None) -> list[Path]:
    paths = [Path(manual_dir or "") / name for name in names]
    if missing := [path.name for path in paths if manual_dir is None or not path.is_file()]:
        raise InputError(
            f"dataset {dataset.name!r} needs {' and '.join(missing)} in --manual-dir (is "
            f"{manual_dir!r}); from https://image-net.org/download-images, after registering there"
        )
    return paths


def _check_free_space(dataset: Dataset, archives: Sequence[Path], target: Path) -> None:
    needed, free = (
        _SPACE * sum(path.stat().st_size for path in archives),
        shutil.disk_usage(target).free,
    )
    if free < needed:
        have, want = f"{free / 1e9:.1f} GB", f"{needed / 1e9:.1f} GB"
        raise InputError(
            f"{target} has {have} free, {dataset.name!r} needs {want}; give another --data-dir"
        )


def check_archive(path: Path, known: Any) -> None:
    """Raise InputError unless a file has the size and the sha256 that tfds knows."""
    size = path.stat().st_size
    if size != known.size:
        raise InputError(
            f"{path} has {size:,} bytes, not {int(known.size):,}: it is not complete; fetch it "
            "again"
        )
    found = hashlib.sha256()
    with progress(f"sha256 of {path.name}", size, "bytes") as advance, path.open("rb") as file:
        for block in iter(lambda: file.read(2**24), b""):
            found.update(block)
            advance(len(block))
    if found.hexdigest() != known.checksum:
        raise InputError(
            f"{path} is not the archive that tfds knows: its sha256 is another; fetch it again"
        )
