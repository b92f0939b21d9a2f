"""Pins a run to its data set: stores the fingerprint at the start and checks it on resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from deepjax.data import Dataset, EncodedSplit, Split, dataset_info
from deepjax.data.catalog import remember
from deepjax.data.own.grouping import shown_names
from deepjax.errors import InputError, require
from deepjax.io import write_text
from deepjax.training.config import TrainConfig
from deepjax.training.distributed.collectives import allgather_strings, on_primary

NAME, DESCRIPTION = "data.json", "dataset.json"


def pin_dataset(out: Path, split: Split | EncodedSplit, name: str) -> None:
    """Store the fingerprint of a split in a new run directory, or check it.

    All processes call this. Raises InputError if the processes have different data sets, or the run
    began with another. A data set without a fingerprint is not checked, nor are prepared arrays, of
    which the shapes are checked as they are read.
    """
    given = allgather_strings(split.fingerprint)
    if len(set(given) - {""}) > 1:
        raise InputError(
            f"the processes have different data sets {name!r}; copy one to all of their data_dir"
        )
    if mine := max(given):
        on_primary(lambda: _note(out / NAME, mine, name))


def pin_description(out: Path, dataset: Dataset) -> None:
    """Store the description of the data set in a new run directory, or check it.

    Raises InputError, naming the fields, if another data set is registered under the name.
    """
    there, mine = read_description(out), json.loads(json.dumps(dataclasses.asdict(dataset)))
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
        write_text(out / DESCRIPTION, json.dumps(mine, indent=2) + "\n")


def run_dataset(out: Path, config: TrainConfig) -> Dataset:
    """The data set of a run, with the mean and std that its network was trained with.

    These are of the weights that it started from, if any, and of the user's own data as they were.
    Raises InputError where the data that are at their path now have other classes.
    """
    dataset, stored = dataset_info(config.dataset), read_description(out)
    if "mean" not in stored or "std" not in stored:
        return dataset
    names = tuple(stored.get("label_names", ()))
    if dataset.path and names and names != dataset.label_names:
        raise InputError(
            f"{out} was trained on the classes {shown_names(names)}; {dataset.path!r} has "
            f"{shown_names(dataset.label_names)} now; move that away, or use another folder as the "
            "current one"
        )
    if not config.transfer.weights and not dataset.path:
        return dataset
    return dataclasses.replace(dataset, mean=tuple(stored["mean"]), std=tuple(stored["std"]))


def stored_dataset(out: Path, config: TrainConfig) -> Dataset | None:
    """The data set of a run that starts from weights, as it began; None before it is stored."""
    stored = read_description(out)
    if not config.transfer.weights or "mean" not in stored or "std" not in stored:
        return None
    return dataclasses.replace(
        dataset_info(config.dataset), mean=tuple(stored["mean"]), std=tuple(stored["std"])
    )


def remember_dataset(out: Path) -> None:
    """Make the description of a run's own data known, so that the data themselves can be absent."""
    stored = read_description(out)
    if stored.get("path"):
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in stored.items()
        }
        try:
            remember(Dataset(**known, source=f"the run {out}"))
        except TypeError as error:
            raise InputError(f"{out / DESCRIPTION} is not complete ({error})") from error


def require_same_classes(tested: Dataset, trained: Dataset, network: str) -> None:
    """Raise InputError unless a test set has the channels and classes of a network's training."""
    (*_, channels), classes = trained.shape, trained.num_classes
    fits = (tested.shape[2], tested.num_classes) == (channels, classes)
    allowed = f"one of the {classes} classes and {channels} channels that {network} was trained on"
    require(fits, "dataset", tested.name, allowed)
    names = tested.label_names, trained.label_names
    allowed = f"one of the classes that {network} was trained on: {shown_names(names[1])}"
    require(not all(names) or names[0] == names[1], "dataset", tested.name, allowed)


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
