"""List and prepare public data sets; check your own images, or store them as ArrayRecord.

    deepjax data list                        # the data sets that --dataset knows by name
    deepjax data prepare fashion_mnist       # downloads, or reads archives of --manual-dir
    deepjax data check photos/               # counts, sizes, modes, broken files, duplicates
    deepjax data check photos/ --json
    deepjax data convert photos/ --output-dir converted --shorter-side 256

PATH is a folder with a folder of images for each class, with or without train/ and val/, a CSV file
with the columns path and label, or another form of docs/own_data.md.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from deepjax.command_line import parse, print_json, run_action
from deepjax.data import Dataset, dataset_info, list_datasets
from deepjax.data.catalog import CATALOG, require_no_folder
from deepjax.data.own.check import check_images
from deepjax.data.own.index import split_options
from deepjax.data.prepare.own_images import convert_images
from deepjax.data.prepare.prepare import check_side, prepare_dataset, write_resized_copy
from deepjax.data.prepared import is_prepared
from deepjax.help_page import action_page
from deepjax.paths import user_path


@dataclasses.dataclass(frozen=True)
class _Check:
    """Check a folder of images, or a list of them: decodes every image."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """The images: a folder of classes, a CSV list, tar or Parquet files, an .npz file."""
    test_fraction: float | None = None
    """Part of each class for tests, where the data have no test split; default 0.2."""
    split_seed: int | None = None
    """Seed by which that part is chosen; default 0."""
    json: bool = False
    """Print JSON, with every name."""


@dataclasses.dataclass(frozen=True)
class _Convert:
    """Store images as ArrayRecord, with their splits: a data set that is read in large blocks."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """The images: a folder of classes, a CSV list, tar or Parquet files."""
    output_dir: Path
    """A new folder, which --dataset takes then."""
    shorter_side: int = 0
    """Pixels of the shorter side of larger images, which become JPEG of that; 0: all as they are.
    """
    test_fraction: float | None = None
    """Part of each class for tests, where the data have no test split; default 0.2."""
    split_seed: int | None = None
    """Seed by which that part is chosen; default 0."""


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """Write a data set as ArrayRecord so that training reads it without TensorFlow."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of the data set: fashion_mnist, cifar10, imagenette/160px-v2, imagenet2012, ..."""
    data_dir: str | None = None
    """Where to write it; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    manual_dir: str | None = None
    """Folder that holds the original archives, so that nothing is downloaded."""
    from_tfrecord: str | None = None
    """Folder of the data set as tfds prepared it as TFRecord, to convert instead of preparing."""
    resized: int | None = None
    """Also write a copy with shorter sides of at most this many pixels, to resized_N of data_dir.
    """


@dataclasses.dataclass(frozen=True)
class _List:
    """List the data sets that --dataset knows by name, and whether they are prepared."""

    data_dir: str | None = None
    """Folder or URL of prepared data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    json: bool = False
    """Print JSON."""


ACTION_OPTIONS: dict[str, Any] = {
    "list": _List,
    "prepare": _Prepare,
    "check": _Check,
    "convert": _Convert,
}


def _parsed(action: str, arguments: Sequence[str]) -> Any:
    """The options of an action."""
    options = ACTION_OPTIONS[action]
    return parse(options, arguments, page=action_page(options, str(__doc__), f"data {action}"))


def _check(arguments: Sequence[str]) -> None:
    """Print the report."""
    options = _parsed("check", arguments)
    require_no_folder(options.path)
    chosen = split_options(options.path, options.test_fraction, options.split_seed)
    report = check_images(options.path, *chosen)
    if options.json:
        print_json(report.to_json())
    else:
        print(report.text())


def _convert(arguments: Sequence[str]) -> None:
    """Write the data set, and print how it is read."""
    options = _parsed("convert", arguments)
    require_no_folder(options.path)
    target = user_path(options.output_dir, "output_dir")
    chosen = split_options(options.path, options.test_fraction, options.split_seed)
    splits = convert_images(options.path, target, options.shorter_side, *chosen)
    counts = ", ".join(f"{len(examples):,} {split}" for split, examples in splits.items())
    name = str(options.output_dir)
    name = f"./{name}" if name in CATALOG else name
    print(f"{counts} images; read them with --dataset {shlex.quote(name)}")


def _prepare(arguments: Sequence[str]) -> None:
    """Prepare a public data set, and print how it is read."""
    options = _parsed("prepare", arguments)
    if options.resized is not None:
        check_side(dataset_info(options.name), options.resized)
    folder = prepare_dataset(
        options.name, options.data_dir, options.manual_dir, options.from_tfrecord
    )
    print(f"prepared in {folder}")
    if options.resized is not None:
        copy = write_resized_copy(options.name, options.resized, options.data_dir)
        print(f"the copy is read with --data-dir {copy}")


def _list(arguments: Sequence[str]) -> None:
    """Print a line for each data set of the catalogue."""
    options = _parsed("list", arguments)
    rows = [_facts(CATALOG[name], options.data_dir) for name in list_datasets()]
    if options.json:
        print_json(rows)
        return
    for row in rows:
        images = f"{row['train_size']:>9,} + {row['test_size']:>6,}"
        size = "x".join(map(str, row["shape"]))
        state = "ready" if row["ready"] else f"deepjax data prepare {row['name']}"
        print(f"{row['name']:26} {images}  {size:>9}  {row['classes']:>4} classes  {state}")
    print(
        "Images: training + test. Your own images need no preparation: --dataset PATH; see "
        "`deepjax data check PATH`."
    )


def _facts(dataset: Dataset, data_dir: str | None) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "shape": list(dataset.shape),
        "classes": dataset.num_classes,
        "train_size": dataset.train_size,
        "test_size": dataset.test_size,
        "ready": is_prepared(dataset, data_dir),
    }


ACTIONS = {"list": _list, "prepare": _prepare, "check": _check, "convert": _convert}


def start(arguments: Sequence[str]) -> None:
    """The command: an action. Raises InputError for an unknown one."""
    run_action(ACTIONS, arguments, str(__doc__))
