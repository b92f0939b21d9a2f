"""Look at the user's own images before they are trained on, or store them as ArrayRecord.

    deepjax data check photos/               # counts, sizes, modes, broken files, duplicates
    deepjax data check photos/ --json
    deepjax data convert photos/ --output-dir converted --shorter-side 256

PATH is a folder with a folder of images for each class, with or without train/ and val/, a CSV file
with the columns path and label, or another form of docs/own_data.md.
"""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from deepjax.command_line import parse
from deepjax.data.own.check import check_images
from deepjax.data.own.index import split_options
from deepjax.data.prepare.own_images import convert_images
from deepjax.errors import unknown_name_error
from deepjax.paths import user_path


@dataclasses.dataclass(frozen=True)
class Check:
    """Check a folder of images, or a list of them: decodes every image."""

    path: Annotated[str, tyro.conf.Positional]
    """The images: a folder of classes, a CSV list, tar or Parquet files, an .npz file."""
    test_fraction: float | None = None
    """Part of each class for tests, where the data have no test split; default 0.2."""
    split_seed: int | None = None
    """Seed by which that part is chosen; default 0."""
    json: bool = False
    """Print JSON, with every name."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Store images as ArrayRecord, with their splits: a data set that is read in large blocks."""

    path: Annotated[str, tyro.conf.Positional]
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


def check(arguments: Sequence[str]) -> None:
    """Print the report."""
    options = parse(Check, arguments)
    chosen = split_options(options.path, options.test_fraction, options.split_seed)
    report = check_images(options.path, *chosen)
    print(json.dumps(report.to_json(), indent=1) if options.json else report.text())


def convert(arguments: Sequence[str]) -> None:
    """Write the data set, and print how it is read."""
    options = parse(Convert, arguments)
    target = user_path(options.output_dir, "output_dir")
    chosen = split_options(options.path, options.test_fraction, options.split_seed)
    splits = convert_images(options.path, target, options.shorter_side, *chosen)
    counts = ", ".join(f"{len(examples):,} {split}" for split, examples in splits.items())
    print(f"{counts} images; read them with --dataset {shlex.quote(str(options.output_dir))}")


ACTIONS = {"check": check, "convert": convert}


def start(arguments: Sequence[str]) -> None:
    """The command: an action. Raises InputError for an unknown one."""
    action, *rest = arguments or ["--help"]
    if action in ("--help", "-h"):
        print(__doc__)
        return
    if action not in ACTIONS:
        raise unknown_name_error("action", action, ACTIONS)
    ACTIONS[action](rest)
