"""What a path to the user's own data holds: classes, and the examples of each split."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from deepjax.data.own.arrays import index_npz
from deepjax.data.own.columns import index_parquet, index_saved, is_saved
from deepjax.data.own.converted import index_converted, is_converted
from deepjax.data.own.csv_list import index_csv
from deepjax.data.own.examples import Examples
from deepjax.data.own.folder import FORMS, index_folder, is_image
from deepjax.data.own.tar import brace_expansion, index_tars
from deepjax.errors import InputError, require
from deepjax.paths import user_path

TEST_FRACTION = 0.2  # of each class, where the data have no test split
Found = tuple[tuple[str, ...], dict[str, Examples]]  # classes, and splits
State = tuple[int, int, int]
"""Inode, size and time of a file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Classes and examples of the user's own data."""

    form: str
    """In words, such as "folder of classes"."""
    label_names: tuple[str, ...]
    splits: Mapping[str, Examples]
    """"train", and "test" where the data have a test split; or "test" alone."""
    mixed: bool = False
    """Whether the examples are in the order of training already."""

    def split(self, test_fraction: float, seed: int) -> dict[str, Examples]:
        """The splits, with their examples in an order by the seed, so that classes are mixed.

        Without a test split a part of each class is for tests; with the fraction 1 all images are,
        and none for training. Raises InputError where no class has images enough for that.
        """
        splits = dict(self.splits)
        if self.mixed:
            return splits
        if "test" not in splits:
            full = splits["train"]
            rows = stratified_rows(full.labels, test_fraction, seed)
            require(len(rows) > 0, "test_fraction", test_fraction, "more, with so few images")
            rest = np.setdiff1d(np.arange(len(full)), rows)
            parts = {"train": rest, "test": rows}
            splits = {name: full.part(part) for name, part in parts.items() if len(part)}
        return {name: each.part(_order(len(each), seed)) for name, each in splits.items()}


def _order(count: int, *seed: int) -> np.ndarray:
    """A permutation that depends on the numbers alone, on every machine."""
    stream = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(stream, kind="stable")


def stratified_rows(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The ascending rows of a part of each class; a class of one image keeps it for training.

    A class of n images gives round(fraction * n), at least one and at most n - 1; all if the
    fraction is 1.
    """
    if fraction == 1:
        return np.arange(len(labels))
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        chosen.append(rows[_order(len(rows), seed, int(label))[:count]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name, or all that a pattern stands for."""
    names = brace_expansion(name)
    try:
        return all(Path(each).expanduser().exists() for each in names)
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, a null byte
        return False


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist was meant as a path."""
    return name.startswith(("/", "./", "../", "~"))


def open_index(path: str) -> Index:
    """List the user's own data as they are now; files that have not changed are listed once.

    Raises InputError for a path that does not exist or holds nothing of a known form, for empty
    classes, for one class only, and for images of other formats.
    """
    found = _index(path)
    if len(found.label_names) < 2:
        only = "".join(found.label_names)
        raise InputError(f"dataset {path!r} has one class only, {only!r}; allowed: two or more")
    return found


def split_options(path: str, test_fraction: float | None, seed: int | None) -> tuple[float, int]:
    """Part of each class for tests and the seed of the choice, with the defaults for None.

    Raises InputError for values that are not allowed, and where the data have a test split of their
    own and one is given.
    """
    given = (test_fraction, seed) != (None, None)
    fraction, seed = (TEST_FRACTION if test_fraction is None else test_fraction), seed or 0
    require(0 < fraction < 1, "test_fraction", fraction, "above 0, below 1")
    require(seed >= 0, "split_seed", seed, "0 or more")
    if given and "test" in open_index(path).splits:
        raise InputError(
            f"dataset {path!r} has a test split of its own; leave out test_fraction and split_seed"
        )
    return fraction, seed


def _index(path: str) -> Index:
    """The index of whatever form lies at a path."""
    shards = [user_path(each, "dataset") for each in brace_expansion(path)]
    where = shards[0]
    if missing := [shard for shard in shards if not shard.exists()]:
        raise InputError(f"dataset is {path!r}; {missing[0]} does not exist; allowed: {FORMS}")
    suffix = where.suffix.lower()
    several = suffix in (".tar", ".parquet") and not any(shard.is_dir() for shard in shards)
    allowed = "a pattern of tar or of Parquet files"
    require(len(shards) == 1 or several, "dataset", path, allowed)
    if where.is_dir():
        return _index_directory(where)
    if suffix not in FILES:
        raise InputError(f"dataset is {path!r}, a file; allowed: {FORMS}")
    root = os.path.commonpath([shard.parent for shard in shards])
    return _index_files(suffix, Path(root), shards)


def _index_directory(where: Path) -> Index:
    if is_converted(where):
        form, names, splits = index_converted(where)
        return Index(form, names, splits, mixed=True)
    if is_saved(where):
        return Index("saved by Hugging Face's datasets", *index_saved(where))
    tars, parquet = _files(where, ("*",), ".tar"), _files(where, ("*", "*/*"), ".parquet")
    if not tars and not parquet:
        return Index("folder of classes", *index_folder(where))
    if (tars and parquet) or _has_images(where):
        raise InputError(
            f"dataset is {str(where)!r}, which has {(tars or parquet)[0].name} next to images in "
            "folders, or next to other files of images; keep one form in it"
        )
    return _index_files(".tar", where, tars) if tars else _index_files(".parquet", where, parquet)


def _files(where: Path, patterns: Sequence[str], suffix: str) -> list[Path]:
    paths = (path for pattern in patterns for path in where.glob(pattern))
    return sorted(p for p in paths if p.suffix.lower() == suffix and not p.name.startswith("."))


def _has_images(where: Path) -> bool:
    for _, folders, names in os.walk(where):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(map(is_image, names)):
            return True
    return False


FILES: Mapping[str, tuple[str, Callable[[Path, Sequence[Path]], Found]]] = {
    ".tar": ("tar files", lambda root, files: index_tars(files)),
    ".csv": ("CSV list", lambda root, files: index_csv(*files)),
    ".npz": ("arrays", lambda root, files: index_npz(*files)),
    ".parquet": ("Parquet files", index_parquet),
}
"""By suffix: the form in words, and its reader of a root and files."""


def _index_files(suffix: str, root: Path, files: Sequence[Path]) -> Index:
    states = [file.stat() for file in files]
    return _listed(
        suffix, root, tuple(files), tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in states)
    )


@functools.lru_cache(maxsize=4)
def _listed(suffix: str, root: Path, files: tuple[Path, ...], states: tuple[State, ...]) -> Index:
    """Listed once in a process, unless a file changes."""
    form, read = FILES[suffix]
    return Index(form, *read(root, files))
