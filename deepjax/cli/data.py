"""Look at the user's own images before they are trained on.

    deepjax data check photos/               # counts, sizes, modes, broken files, duplicates
    deepjax data check photos/ --json

PATH is a folder with a folder of images for each class, with or without train/ and val/, a CSV file
with the columns path and label, or another form of docs/own_data.md.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

import tyro

from deepjax.command_line import parse
from deepjax.data.own.check import check_images
from deepjax.data.own.index import TEST_FRACTION
from deepjax.errors import unknown_name_error

ACTIONS = ("check",)


@dataclasses.dataclass(frozen=True)
class Options:
    """Check a folder of images, or a list of them: decodes every image."""

    path: Annotated[str, tyro.conf.Positional]
    """The images: a folder of classes, a CSV list, tar or Parquet files, an .npz file."""
    test_fraction: float = TEST_FRACTION
    """Part of each class for tests, where the data have no test split."""
    split_seed: int = 0
    """Seed by which that part is chosen."""
    json: bool = False
    """Print JSON, with every name."""


def start(arguments: Sequence[str]) -> None:
    """The command: the report. Raises InputError for an unknown action."""
    action, *rest = arguments or ["--help"]
    if action in ("--help", "-h"):
        print(__doc__)
        return
    if action not in ACTIONS:
        raise unknown_name_error("action", action, ACTIONS)
    options = parse(Options, rest)
    report = check_images(options.path, options.test_fraction, options.split_seed)
    print(json.dumps(report.to_json(), indent=1) if options.json else report.text())
