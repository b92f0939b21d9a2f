"""Which pixels a run has: noted when it begins, and held against what it goes on with."""

import json
from pathlib import Path

from deepjax.data import EncodedSplit, Split
from deepjax.errors import InputError
from deepjax.training.config import write_text
from deepjax.training.processes import by_first, told_by_all

NAME = "data.json"


def claim_data(out: Path, split: Split | EncodedSplit) -> None:
    """Note in the run directory the fingerprint of the photographs, or see that it is still that one; all processes call this.

    Raises InputError where the processes have different data sets, or the run began with another. Nothing is known of a data set
    without a fingerprint, nor of arrays, whose every image is held against the catalog's shape as it is read.
    """
    if not isinstance(split, EncodedSplit):
        return
    given = told_by_all(split.fingerprint)
    if len(set(given) - {""}) > 1:
        raise InputError(f"the processes have different data sets {split.dataset.name!r}; copy one to all of their data_dir")
    if mine := max(given):
        by_first(lambda: _note(out / NAME, mine, split.dataset.name))


def _note(path: Path, mine: str, name: str) -> None:
    try:
        there = json.loads(path.read_text())["fingerprint"] if path.exists() else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); choose another --out") from error
    if there and there != mine:
        raise InputError(
            f"data set {name!r} is another one than this run began with (fingerprint {mine[:12]}, there {there[:12]}); "
            "give the data_dir that it began with, or choose another --out"
        )
    if not there:
        write_text(path, json.dumps({"dataset": name, "fingerprint": mine}, indent=2) + "\n")
