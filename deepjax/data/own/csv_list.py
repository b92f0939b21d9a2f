"""A list of image files and their classes in a CSV file."""

import collections
import csv
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from deepjax.data.own.examples import Examples, Files
from deepjax.data.own.folder import READABLE
from deepjax.data.own.grouping import TEST_NAMES, TRAIN_NAMES, group
from deepjax.data.threads import thread_map
from deepjax.errors import InputError

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name")
SPLIT_COLUMNS = ("split", "set", "subset")
Row = tuple[str, str, str]  # path, label, and split


def index_csv(file: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The classes and the splits of a CSV file with a header, in the order of its rows.

    Paths are relative to its folder, or absolute. Labels are names or numbers; classes are sorted,
    numbers by value. A column split has names of `TRAIN_NAMES` and `TEST_NAMES`. Raises InputError
    for a missing column, an empty or repeated path, a file that is missing or neither JPEG nor PNG,
    and a class of the test split that the training split lacks.
    """
    paths, labels, splits = zip(*_rows(file), strict=True)
    return group(
        file, splits, labels,
        lambda of_rows, rows: Files(of_rows, file.parent, [paths[row] for row in rows]),
    )  # fmt: skip


def _rows(file: Path) -> list[Row]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            header = [name.strip().lower() for name in next(reader, [])]
            path, label = _column(file, header, PATH_COLUMNS), _column(file, header, LABEL_COLUMNS)
            split = next((header.index(name) for name in SPLIT_COLUMNS if name in header), None)
            found = [
                _row(file, row + [""] * len(header), path, label, split, reader.line_num)
                for row in reader
                if row
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as CSV in UTF-8: {error}") from error
    if not found:
        raise InputError(f"{file} has no rows")
    _check_files(file, [path for path, _, _ in found])
    return found


def _column(file: Path, header: Sequence[str], names: Sequence[str]) -> int:
    found = next((header.index(name) for name in names if name in header), None)
    if found is not None and header.count(header[found]) > 1:
        raise InputError(f"{file} has the column {header[found]!r} twice; keep one of them")
    if found is None:
        raise InputError(
            f"{file} has the columns {', '.join(header) or 'none'}; allowed: a header with one of "
            f"{', '.join(names)}"
        )
    return found


def _row(
    file: Path, values: Sequence[str], path: int, label: int, split: int | None, line: int
) -> Row:
    cells = [values[at].strip() for at in (path, label)]
    if not all(cells):
        raise InputError(
            f"{file}, line {line}: path is {cells[0]!r} and label {cells[1]!r}; give both"
        )
    name = "train" if split is None else values[split].strip().lower()
    if name not in (*TRAIN_NAMES, *TEST_NAMES):
        allowed = ", ".join((*TRAIN_NAMES, *TEST_NAMES))
        raise InputError(f"{file}, line {line}: split is {name!r}; allowed: {allowed}")
    return cells[0], cells[1], "train" if name in TRAIN_NAMES else name


def _check_files(file: Path, paths: Sequence[str]) -> None:
    (path, count), *_ = collections.Counter(paths).most_common(1)
    if count > 1:
        raise InputError(f"{file} lists {path!r} {count} times; give each image once")
    other = [path for path in paths if os.path.splitext(path)[1].lower() not in READABLE]
    if other:
        raise InputError(f"{file} lists {other[0]!r}; allowed: files {', '.join(READABLE)}")
    there = thread_map(functools.partial(_is_file, file.parent), paths)
    if missing := [path for path, found in zip(paths, there, strict=True) if not found]:
        raise InputError(
            f"{file} lists {missing[0]!r}, which is no file ({len(missing)} of {len(paths)} are "
            "none); paths are relative to the folder of the list"
        )


def _is_file(root: Path, path: str) -> bool:
    return os.path.isfile(os.path.join(root, path))
