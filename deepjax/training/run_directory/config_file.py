"""config.json of a run or study directory: written once, compared when the run is resumed."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepjax.data import Dataset
from deepjax.errors import InputError
from deepjax.io import write_text
from deepjax.renamed_options import rename_option
from deepjax.training.config import OPTION_GROUPS, TrainConfig, options_of, replace_options
from deepjax.training.run_directory.data_identity import own_data

AVERAGE_FILE = "average.json"  # marks the average of checkpoints, which is no run to resume
RESULT_FILES = ("metrics.jsonl", "checkpoints", "measured", "result.json")


@dataclasses.dataclass(frozen=True, eq=False)
class OwnDataConfig(TrainConfig):
    """The configuration of a run on the user's own data, which the run directory describes.

    `own` stays with copies that `dataclasses.replace` makes, unless they name another data set.
    """

    own: dataclasses.InitVar[Dataset | None] = None

    def __post_init__(self, own: Dataset | None) -> None:
        object.__setattr__(self, "own", own)
        if own is not None and own.name == self.dataset:
            object.__setattr__(self, "described", own)
        super().__post_init__()


def init_run_dir(out: Path, config: Any) -> None:
    """Make `out` the directory of a configuration (of a run or a study), or check that it is.

    Raises InputError when it belongs to another configuration (naming each option), cannot be read
    or written, or has results but no config.json.
    """
    path = out / "config.json"
    if path.exists():
        _compare(path, config)
        return
    left = [name for name in RESULT_FILES if (out / name).exists()]
    if left:
        raise InputError(
            f"{out} holds {left[0]} but no config.json; restore it, or choose another --output-dir"
        )
    write_text(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_config(path: Path) -> TrainConfig:
    """The configuration of a training run; options added after it was made have their defaults.

    The user's own data need not be there any more: their description is in the run directory.
    """
    try:
        stored = _options(json.loads((path / "config.json").read_text()))
        options = {name: _as_tuple(value) for name, value in stored.items()}
        first = options.pop("model", ""), options.pop("dataset", "digits")
        own = own_data(path)
        config = TrainConfig(*first) if own is None else OwnDataConfig(*first, own=own)
        return replace_options(config, **options)
    except OSError as error:
        raise InputError(
            f"{path} holds no config.json ({error.strerror}); "
            "allowed: the --output-dir folder of a training run"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path / 'config.json'} is not of a training run ({type(error).__name__}: {error})"
        ) from error


def _compare(path: Path, config: Any) -> None:
    is_run = isinstance(config, TrainConfig)
    options = options_of(config) if is_run else dataclasses.asdict(config)
    mine = json.loads(json.dumps(options))
    defaults = json.loads(json.dumps(_defaults(config)))
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise TypeError("not a table of fields")
        there = defaults | (_options(stored) if is_run else _study_fields(stored))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as a configuration ({type(error).__name__}); "
            "choose another --output-dir"
        ) from error
    changed = [name for name in sorted({*mine, *there}) if mine.get(name) != there.get(name)]
    if not changed:
        return
    differences = [f"{name} is {mine.get(name)!r}, there {there.get(name)!r}" for name in changed]
    why = (
        " (the learning-rate schedule depends on the number of steps: "
        "a run of another length needs a new --output-dir)"
        if {*changed} <= {"epochs", "steps"}
        else ""
    )
    raise InputError(
        f"{path.parent} holds a run of another configuration: {'; '.join(differences)}{why}; "
        "choose another --output-dir"
    )


def _defaults(config: Any) -> dict[str, Any]:
    """The values of options that were added after a run was made."""
    if isinstance(config, TrainConfig):
        return {k: v for k, v in options_of(TrainConfig(config.model)).items() if k != "model"}
    return {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING
    }


def _options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run's config.json by name: of today's groups, or flat as in version 0.1.0."""
    groups = {*OPTION_GROUPS.values()} - {""}
    flat: dict[str, Any] = {}
    for name, value in stored.items():
        flat |= value if name in groups and isinstance(value, dict) else {name: value}
    return _renamed(flat)


def _study_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a study's config.json, whose field `training` has options of its runs."""
    training = stored.get("training")
    return {**stored, "training": _renamed(training)} if isinstance(training, dict) else {**stored}


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    return dict(rename_option(name, value) for name, value in options.items())


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
