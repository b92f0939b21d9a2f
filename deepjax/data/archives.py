"""The archives that have to be fetched by hand, held against what tfds knows of them before hours go into them."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from deepjax.data.catalog import Dataset
from deepjax.data.passes import progress
from deepjax.errors import InputError

NEEDED = {
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    "imagenet2012_real": ("ILSVRC2012_img_val.tar",),
}
_SPACE = 1.05  # tfds sorts the images in a copy of them, which goes as the shards come


def check_archives(dataset: Dataset, builder: Any, manual_dir: str | None, target: Path) -> None:
    """Hold the archives that tfds does not fetch against the size and the sha256 that tfds knows, and against the free disk.

    A part of ImageNet under a name of one's own has archives that tfds knows nothing of: these are only to be there. Raises
    InputError.
    """
    names = NEEDED.get(builder.name, ())
    paths = [Path(manual_dir or "") / name for name in names]
    if missing := [path.name for path in paths if manual_dir is None or not path.is_file()]:
        raise InputError(
            f"dataset {dataset.name!r} needs {' and '.join(missing)} in --manual-dir (is {manual_dir!r}); "
            "both come from https://image-net.org/download-images, after registering there"
        )
    needed, free = int(_SPACE * sum(path.stat().st_size for path in paths)), shutil.disk_usage(target).free
    if free < needed:
        have, want = f"{free / 1e9:.1f} GB", f"{needed / 1e9:.1f} GB"
        raise InputError(f"{target} has {have} free, {dataset.name!r} needs {want}; give another --data-dir")
    if dataset.name == builder.name:
        known = {url.rsplit("/", 1)[-1]: info for url, info in builder.url_infos.items()}
        for path in paths:
            _check(path, known[path.name])


def _check(path: Path, known: Any) -> None:
    size = path.stat().st_size
    if size != known.size:
        raise InputError(f"{path} has {size:,} bytes, not {int(known.size):,}: it was not fetched whole; fetch it again")
    found = hashlib.sha256()
    with progress(f"sha256 of {path.name}", size, "bytes") as advance, path.open("rb") as file:
        for block in iter(lambda: file.read(2**24), b""):
            found.update(block)
            advance(len(block))
    if found.hexdigest() != known.checksum:
        raise InputError(f"{path} is not the archive that tfds knows: its sha256 is another; fetch it again")
