"""What a path to the user's own data holds: classes, and the examples of each split."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deepjax.data.own.arrays import index_npz
from deepjax.data.own.columns import index_parquet, index_saved, is_saved
from deepjax.data.own.converted import index_converted, is_converted
from deepjax.data.own.csv_list import index_csv
from deepjax.data.own.examples import Examples
from deepjax.data.own.folder import FORMS, READABLE, index_folder
from deepjax.data.own.tar import brace_expansion, index_tars
from deepjax.errors import InputError, require
from deepjax.paths import user_path

TEST_FRACTION = 0.2  # of each class, where the data have no test split


@dataclasses.dataclass(frozen=True)
class Index:
    """Classes and examples of the user's own data."""

    form: str
    """In words, such as "folder of classes"."""
    label_names: tuple[str, ...]
    splits: Mapping[str, Examples]
    """"train", and "test" where the data have a test split."""
    mixed: bool = False
    """Whether the examples are in the order of training already."""

    def split(self, test_fraction: float, seed: int) -> dict[str, Examples]:
        """Both splits, with their examples in an order by the seed, so that classes are mixed.

        Without a test split a part of each class is for tests. Raises InputError where no class has
        images enough for that.
        """
        splits = dict(self.splits)
        if self.mixed:
            return splits
        if "test" not in splits:
            full = splits["train"]
            rows = stratified_rows(full.labels, test_fraction, seed)
            require(len(rows) > 0, "test_fraction", test_fraction, "more, with so few images")
            rest = np.setdiff1d(np.arange(len(full)), rows)
            splits = {"train": full.part(rest), "test": full.part(rows)}
        return {name: each.part(_order(len(each), seed)) for name, each in splits.items()}


def _order(count: int, *seed: int) -> np.ndarray:
    """A permutation that depends on the numbers alone, on every machine."""
    stream = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(stream, kind="stable")


def stratified_rows(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The ascending rows of a part of each class; a class of one image keeps it for training.

    A class of n images gives round(fraction * n), at least one.
    """
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        chosen.append(rows[_order(len(rows), seed, int(label))[:count]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name."""
    try:
        return all(Path(each).expanduser().exists() for each in brace_expansion(name))
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, a null byte
        return False


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist was meant as a path."""
    return name.startswith(("/", "./", "../", "~"))


@functools.lru_cache(maxsize=8)
def open_index(path: str) -> Index:
    """List the user's own data; once in a process.

    Raises InputError for a path that does not exist or holds nothing of a known form, for empty
    classes, for one class only, and for images of other formats.
    """
    found = _index(path)
    if len(found.label_names) < 2:
        only = "".join(found.label_names)
        raise InputError(f"dataset {path!r} has one class only, {only!r}; allowed: two or more")
    return found


@functools.lru_cache(maxsize=8)
def own_splits(path: str, test_fraction: float, seed: int) -> dict[str, Examples]:
    """`Index.split` of the data at a path; once in a process."""
    return open_index(path).split(test_fraction, seed)


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
    if where.is_dir():
        return _index_directory(where)
    if suffix == ".tar":
        return Index("tar files", *index_tars(shards))
    if suffix == ".csv":
        return Index("CSV list", *index_csv(where))
    if suffix == ".npz":
        return Index("arrays", *index_npz(where))
    if suffix == ".parquet":
        return Index("Parquet files", *index_parquet(where.parent, shards))
    raise InputError(f"dataset is {path!r}, a file; allowed: {FORMS}")


def _index_directory(where: Path) -> Index:
    if is_converted(where):
        form, names, splits = index_converted(where)
        return Index(form, names, splits, mixed=True)
    if is_saved(where):
        return Index("saved by Hugging Face's datasets", *index_saved(where))
    tars = sorted(where.glob("*.tar"))
    parquet = sorted(path for depth in ("*", "*/*") for path in where.glob(f"{depth}.parquet"))
    if not tars and not parquet:
        return Index("folder of classes", *index_folder(where))
    readable = {path.suffix for path in where.glob("*/*")} & set(READABLE)
    if (tars and parquet) or readable:
        raise InputError(
            f"dataset is {str(where)!r}, which has {(tars or parquet)[0].name} next to images in "
            "folders, or next to other files of images; keep one form in it"
        )
    if tars:
        return Index("tar files", *index_tars(tars))
    return Index("Parquet files", *index_parquet(where, parquet))
