"""Pins a run to its data set: stores the fingerprint at the start and checks it on resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from deepjax.data import Dataset, EncodedSplit, Split
from deepjax.data.label_names import label_names
from deepjax.data.own.fingerprint import current_fingerprint
from deepjax.data.own.grouping import shown_names
from deepjax.errors import InputError, require
from deepjax.io import write_text
from deepjax.training.config import TrainConfig
from deepjax.training.distributed.collectives import allgather_strings, on_primary, sync_errors

NAME, DESCRIPTION = "data.json", "dataset.json"


def pin_dataset(out: Path, split: Split | EncodedSplit, dataset: Dataset) -> None:
    """Store the fingerprint of a split in a new run directory, or check it.

    The user's own data are read again for that, since they may have changed after the split was
    opened. All processes call this. Raises InputError if the processes have different data sets, or
    the run began with another. A data set without a fingerprint is not checked, nor are prepared
    arrays, of which the shapes are checked as they are read.
    """
    path, name = dataset.path, dataset.name
    given = allgather_strings(
        sync_errors(lambda: current_fingerprint(path)) if path else split.fingerprint
    )
    if len(set(given) - {""}) > 1:
        raise InputError(
            f"the processes have different data sets {name!r}; copy one to all of their data_dir"
        )
    if mine := max(given):
        on_primary(lambda: _note(out / NAME, mine, name))


def pin_description(out: Path, dataset: Dataset, data_dir: str | None = None) -> None:
    """Store the description of the data set in a new run directory, or check it.

    With the names of its classes, which a prepared data set in `data_dir` may have. Raises
    InputError, naming the fields, if another data set is registered under the name.
    """
    there, mine = read_description(out), json.loads(json.dumps(dataclasses.asdict(dataset)))
    if not dataset.label_names:
        there.pop("label_names", None)
    changed = [
        f"{field} is {mine[field]!r}, there {value!r}"
        for field, value in there.items()
        if mine.get(field) != value
    ]
    if changed:
        raise InputError(
            f"data set {dataset.name!r} is registered with another description "
            f"than this run began with: {'; '.join(changed)}; "
            "register it as it was, or choose another --output-dir"
        )
    if not there:
        mine["label_names"] = label_names(dataset, data_dir)
        write_text(out / DESCRIPTION, json.dumps(mine, indent=2) + "\n")


def run_dataset(out: Path, config: TrainConfig) -> Dataset:
    """The data set of a run, with the names of its classes, and the mean and std of its training.

    These are of the weights that it started from, if any.
    """
    stored, dataset = read_description(out), config.described
    if names := tuple(stored.get("label_names", ())):
        dataset = dataclasses.replace(dataset, label_names=names)
    return stored_dataset(out, config, dataset) or dataset


def stored_dataset(
    out: Path, config: TrainConfig, dataset: Dataset | None = None
) -> Dataset | None:
    """The data set of a run that starts from weights, as it began; None before it is stored."""
    stored = read_description(out)
    if not config.transfer.weights or "mean" not in stored or "std" not in stored:
        return None
    return dataclasses.replace(
        dataset or config.described, mean=tuple(stored["mean"]), std=tuple(stored["std"])
    )


def own_data(out: Path) -> Dataset | None:
    """The user's own data that a run was trained on, as it describes them; None for other data.

    Raises InputError for a description that is not complete.
    """
    stored = read_description(out)
    if not stored.get("path"):
        return None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    try:
        return Dataset(**fields, source=f"the run {out}")
    except TypeError as error:
        raise InputError(f"{out / DESCRIPTION} is not complete ({error})") from error


def read_fingerprint(out: Path) -> str:
    """The fingerprint of the data that a run was trained on; "" where it has none that is valid."""
    try:
        return str(json.loads((out / NAME).read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def require_same_classes(tested: Dataset, trained: Dataset, network: str) -> None:
    """Raise InputError unless a test set has the channels and classes of a network's training.

    Classes without names, whose names are their numbers, may be any.
    """
    (*_, channels), classes = trained.shape, trained.num_classes
    fits = (tested.shape[2], tested.num_classes) == (channels, classes)
    allowed = f"one of the {classes} classes and {channels} channels that {network} was trained on"
    require(fits, "dataset", tested.name, allowed)
    names = tested.label_names, trained.label_names
    allowed = f"one of the classes that {network} was trained on: {shown_names(names[1])}"
    unnamed = (), tuple(map(str, range(classes)))
    same = names[0] == names[1] or any(each in unnamed for each in names)
    require(same, "dataset", tested.name, allowed)


def read_description(out: Path) -> dict[str, Any]:
    """The stored description of a run's data set, by field of `Dataset`; empty if there is none.

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
            f"data set {name!r} is another one than this run began with "
            f"(fingerprint {mine[:12]}, there {there[:12]}); "
            "give the data that it began with, or choose another --output-dir"
        )
    if not there:
        write_text(path, json.dumps({"dataset": name, "fingerprint": mine}, indent=2) + "\n")
