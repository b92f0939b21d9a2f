"""Which data a run has: noted when it begins, and compared with what it is resumed with."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from deepjax.data import Dataset, EncodedSplit, Split
from deepjax.errors import InputError
from deepjax.training.config_file import write_text
from deepjax.training.distributed.collectives import allgather_strings, on_primary

NAME, DESCRIPTION = "data.json", "dataset.json"


def pin_dataset(out: Path, split: Split | EncodedSplit) -> None:
    """Note in the run directory the fingerprint of the photographs, or see that it is still that one; all processes call this.

    Raises InputError where the processes have different data sets, or the run began with another. Nothing is known of a data set
    without a fingerprint, nor of arrays, whose every image is held against the catalog's shape as it is read.
    """
    if not isinstance(split, EncodedSplit):
        return
    given = allgather_strings(split.fingerprint)
    if len(set(given) - {""}) > 1:
        raise InputError(
            f"the processes have different data sets {split.dataset.name!r}; copy one to all of their data_dir"
        )
    if mine := max(given):
        on_primary(lambda: _note(out / NAME, mine, split.dataset.name))


def pin_description(out: Path, dataset: Dataset) -> None:
    """Note in the run directory what the description of its data set says, or see that it still says that.

    Raises InputError, naming the fields, where another one is registered under the name that config.json has.
    """
    there, mine = read_description(out), json.loads(json.dumps(dataclasses.asdict(dataset)))
    changed = [
        f"{field} is {mine[field]!r}, there {value!r}"
        for field, value in there.items()
        if mine.get(field) != value
    ]
    if changed:
        raise InputError(
            f"data set {dataset.name!r} is registered with another description than this run began with: {'; '.join(changed)}; "
            "register it as it was, or choose another --output-dir"
        )
    if not there:
        write_text(out / DESCRIPTION, json.dumps(mine, indent=2) + "\n")


def read_description(out: Path) -> dict[str, Any]:
    """What a run's data set was described as when it began, by field of `Dataset`; empty where that was not noted.

    Without `source`, which is a text for people.
    """
    path, known = (
        out / DESCRIPTION,
        {field.name for field in dataclasses.fields(Dataset)} - {"source"},
    )
    try:
        noted = json.loads(path.read_text()) if path.exists() else {}
        return {field: value for field, value in noted.items() if field in known}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}); choose another --output-dir"
        ) from error


def _note(path: Path, mine: str, name: str) -> None:
    try:
        there = json.loads(path.read_text())["fingerprint"] if path.exists() else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}); choose another --output-dir"
        ) from error
    if there and there != mine:
        raise InputError(
            f"data set {name!r} is another one than this run began with (fingerprint {mine[:12]}, there {there[:12]}); "
            "give the data_dir that it began with, or choose another --output-dir"
        )
    if not there:
        write_text(path, json.dumps({"dataset": name, "fingerprint": mine}, indent=2) + "\n")
