r"""CPU seconds and memory until a large data set of one's own is listed, split and hashed.

Of each form in a process of its own, with images of 100 bytes, which are not decoded.

python experiments/benchmarks/own_listing.py --images 1000000 --folder /a/large/disk
"""

import csv
import dataclasses
import io
import itertools
import json
import multiprocessing
import resource
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deepjax import command_line
from deepjax.data.own.fingerprint import fingerprint_of
from deepjax.data.own.index import TEST_FRACTION, open_index

CLASSES, IMAGES_A_FOLDER, BYTES = 100, 1000, 100


@dataclasses.dataclass(frozen=True)
class Options:
    """What is listed."""

    folder: str | None = None
    """Where the data are made, and removed in the end; default the temporary folder."""
    images: int = 1_000_000
    """Images of each form."""
    forms: tuple[str, ...] = ("folder", "csv", "tar", "parquet")
    """Forms of the data."""


def main() -> None:
    """Print a row of Markdown for each form."""
    options = command_line.parse(Options)
    columns = "form | listed s | split s | fingerprint s | peak GiB"
    print(f"| {columns} |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        made = MAKERS["folder"](Path(name), options.images) if _needs_files(options) else None
        for form in options.forms:
            path = made if form == "folder" else MAKERS[form](Path(name), options.images)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, gigabytes = pool.apply(measure, [str(path)])
            shown = " | ".join(f"{each:.1f}" for each in seconds)
            print(f"| {form} | {shown} | {gigabytes:.2f} |", flush=True)


def _needs_files(options: Options) -> bool:
    return not {"folder", "csv"}.isdisjoint(options.forms)


def measure(path: str) -> tuple[list[float], float]:
    """CPU seconds of listing, splitting and the fingerprint; and the most memory in GiB."""
    times = [time.process_time()]
    index = open_index(path)
    times.append(time.process_time())
    index.split(TEST_FRACTION, 0)
    times.append(time.process_time())
    fingerprint_of(index.splits)
    times.append(time.process_time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [after - before for before, after in itertools.pairwise(times)], peak


def contents(count: int) -> Iterator[tuple[str, int, bytes]]:
    """Names, classes and random bytes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        label = i // IMAGES_A_FOLDER % CLASSES
        yield f"class{label:03}/{i // IMAGES_A_FOLDER:05}/{i:08}.jpg", label, rng.bytes(BYTES)


def make_folder(root: Path, count: int) -> Path:
    """Files in folders of 1,000."""
    images = root / "images"
    for name, _, content in contents(count):
        if name.endswith("000.jpg"):
            (images / name).parent.mkdir(parents=True)
        (images / name).write_bytes(content)
    return images


def make_csv(root: Path, count: int) -> Path:
    """A list of the same files."""
    with (root / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([f"images/{name}", label] for name, label, _ in contents(count))
    return root / "list.csv"


def make_tar(root: Path, count: int) -> Path:
    """Shards of 10,000 images with their labels in JSON, as WebDataset has them."""
    (root / "tar").mkdir()
    for shard, several in itertools.groupby(enumerate(contents(count)), lambda of: of[0] // 10_000):
        with tarfile.open(root / "tar" / f"{shard:05}.tar", "w") as archive:
            for i, (_, label, content) in several:
                _add(archive, f"{i:08}.jpg", content)
                _add(archive, f"{i:08}.json", json.dumps({"label": label}).encode())
    return root / "tar"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def make_parquet(root: Path, count: int) -> Path:
    """A file with row groups of 1,000 images."""
    import pyarrow
    import pyarrow.parquet

    _, labels, images = zip(*contents(count), strict=True)
    table = pyarrow.table({"image": images, "label": labels})
    pyarrow.parquet.write_table(table, root / "0.parquet", row_group_size=1000)
    return root / "0.parquet"


MAKERS = {
    "folder": make_folder,
    "csv": make_csv,
    "tar": make_tar,
    "parquet": make_parquet,
}


if __name__ == "__main__":
    command_line.run_command(main)
