"""Images in columns: Parquet files, and what `save_to_disk` of Hugging Face's datasets writes."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.data.own.examples import Examples
from deepjax.data.own.grouping import group, shown_names, splits_in_names
from deepjax.errors import InputError, describe_error

IMAGES, LABELS = ("image", "img", "picture"), ("label", "labels", "fine_label", "class", "target")
MOST_BYTES = 8 * 2**30  # of Parquet files, which are kept in memory
ALLOWED = (
    f"a column of encoded images ({', '.join(IMAGES)}), binary or with a field bytes, and one of "
    f"integers or names ({', '.join(LABELS)})"
)


@dataclasses.dataclass(frozen=True)
class Column(Examples):
    """Encoded images in a column of Arrow."""

    images: Any
    """A chunked array of binary values."""
    rows: np.ndarray
    files: Sequence[str]
    """The file of each row of the column."""

    def name(self, index: int) -> str:
        """FILE, row N of all files."""
        row = int(self.rows[index])
        return f"{self.files[row]}, row {row}"

    def encoded(self, index: int) -> bytes:
        """The bytes of the image. Raises InputError where there are none."""
        found = self.images[int(self.rows[index])].as_py()
        if found is None:
            raise InputError(f"{self.name(index)} has no image in it")
        return found

    def sizes(self) -> list[int]:
        """The number of bytes of each. Raises InputError where one has none."""
        import pyarrow.compute

        if self.images.null_count:
            for index in range(len(self)):
                self.encoded(index)  # raises at the first without an image
        lengths = pyarrow.compute.binary_length(self.images)  # pyright: ignore
        return lengths.to_numpy()[self.rows].tolist()

    def part(self, rows: np.ndarray) -> "Column":
        """The images of these rows."""
        return Column(self.labels[rows], self.images, self.rows[rows], self.files)


def index_parquet(root: Path, files: Sequence[Path]) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The classes and the splits of Parquet files; their names, or their folders', say the split.

    They are read into memory. Raises InputError for more than `MOST_BYTES`, for files without the
    columns of `ALLOWED`, and as `group` does.
    """
    import pyarrow.parquet

    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        raise InputError(
            f"{root} has {size / 2**30:.0f} GiB in Parquet; allowed: up to "
            f"{MOST_BYTES // 2**30}, as it is kept in memory; save it with datasets' save_to_disk"
        )
    splits = splits_in_names(root, [str(file.relative_to(root)) for file in files])
    return _grouped(files, splits, lambda file: pyarrow.parquet.ParquetFile(file).read())


def index_saved(root: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The classes and the splits of a folder that `save_to_disk` wrote; mapped, not read.

    Raises InputError as `index_parquet` does.
    """
    import pyarrow.ipc

    folders = sorted(path for path in root.iterdir() if (path / "state.json").is_file())
    of_folders = splits_in_names(root, [folder.name for folder in folders])
    # Not the cache-*.arrow, which `map` and `filter` write next to them.
    pairs = zip(folders or [root], of_folders or ["train"], strict=True)
    found = [
        (file, split) for folder, split in pairs for file in sorted(folder.glob("data-*.arrow"))
    ]
    files, splits = [file for file, _ in found], [split for _, split in found]

    def read(file: Path) -> Any:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()

    if not files:
        raise InputError(f"{root} has no files data-*.arrow")
    return _grouped(files, splits, read)


def is_saved(root: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (root / "state.json").is_file() or (root / "dataset_dict.json").is_file()


def _grouped(
    files: Sequence[Path], splits: Sequence[str], read: Any
) -> tuple[tuple[str, ...], dict[str, Examples]]:
    import pyarrow

    images: list[Any] = []
    labels: list[str] = []
    of_rows: list[str] = []
    names: list[str] = []
    classes: list[list[str]] = []  # of each file
    for file, split in zip(files, splits, strict=True):
        try:
            table = read(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{file} cannot be read: {describe_error(error)}") from error
        image, label = (_column(file, table, wanted) for wanted in (IMAGES, LABELS))
        images += _binary(file, table.column(image)).chunks
        labels += _names(file, table, label)
        of_rows += [split] * table.num_rows
        names += [file.name] * table.num_rows
        classes.append(_class_label(table, label))
        if classes[-1] != classes[0]:
            one, other = (shown_names(each) or "none" for each in (classes[-1], classes[0]))
            raise InputError(
                f"{file} has the names of classes {one}; {files[0].name} has {other}; allowed: the "
                "same in all files"
            )
    if not images:
        raise InputError(f"{files[0].parent if files else 'the folder'} has no rows")
    column = pyarrow.chunked_array([chunk.cast(pyarrow.large_binary()) for chunk in images])
    return group(
        files[0].parent, of_rows, labels,
        lambda chosen, rows: Column(chosen, column, np.array(rows), names), classes[0],
    )  # fmt: skip


def _column(file: Path, table: Any, wanted: Sequence[str]) -> str:
    found = next((name for name in wanted if name in table.column_names), None)
    if found is None:
        raise InputError(
            f"{file} has the columns {', '.join(table.column_names)}; allowed: {ALLOWED}"
        )
    return found


def _binary(file: Path, column: Any) -> Any:
    """The bytes of a column of images."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
        column = pyarrow.chunked_array([each.field("bytes") for each in column.chunks], inner)
        kind = column.type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise InputError(f"{file} has images of type {kind}; allowed: {ALLOWED}")
    return column


def _names(file: Path, table: Any, label: str) -> list[str]:
    """The label of each row by name, where the file has names for its numbers."""
    found = table.column(label).to_pylist()
    if any(each is None for each in found):
        raise InputError(f"{file} has rows without a {label}; give each image one")
    names = _class_label(table, label)
    if names and all(isinstance(each, int) for each in found):
        outside = next((row for row, each in enumerate(found) if not 0 <= each < len(names)), None)
        if outside is not None:
            raise InputError(
                f"{file}, row {outside}: {label} is {found[outside]}; allowed: 0 to "
                f"{len(names) - 1}"
            )
        return [names[each] for each in found]
    if not all(isinstance(each, int | str) for each in found):
        raise InputError(f"{file} has a {label} {found[0]!r}; allowed: integers or names")
    return [str(each) for each in found]


def _class_label(table: Any, label: str) -> list[str]:
    """The names in Hugging Face's metadata of a schema, [] without."""
    try:
        stored = json.loads((table.schema.metadata or {})[b"huggingface"])
        return [str(name) for name in stored["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
