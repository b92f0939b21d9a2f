"""The learning rates that pilots selected, with the error that the selection leaves."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepjax.errors import InputError
from deepjax.io import write_text

PACKAGED = Path(__file__).with_name("rates.json")
"""The rates of the presets, by "STUDY-PRESET" and arm; written by `experiments/run_studies.py`."""


@dataclasses.dataclass(frozen=True)
class SelectedRate:
    """The rate of one arm."""

    rate: float
    train_error: float = 0.0
    """Standard deviation of the training error from the choice of the rate, a fraction."""
    test_error: float = 0.0
    """The same of the test error."""


def packaged_rates(study: str, preset: str) -> dict[str, SelectedRate]:
    """The package's rates of a study in a preset, by arm; empty where no pilots were run."""
    return _read(PACKAGED).get(f"{study}-{preset}", {})


def read_rates(path: Path) -> dict[str, SelectedRate]:
    """The rates in a pilot directory's rates.json. Raises InputError for another file."""
    found = _read(path)
    if len(found) != 1:
        raise InputError(f"{path} has rates of {len(found)} studies; allowed: of one")
    return next(iter(found.values()))


def write_rates(path: Path, key: str, rates: Mapping[str, SelectedRate]) -> None:
    """Write the rates of one study and preset into a file, and keep those of others."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found[key] = {name: dataclasses.asdict(rate) for name, rate in rates.items()}
    write_text(path, json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    _read.cache_clear()


@functools.cache
def _read(path: Path) -> dict[str, dict[str, SelectedRate]]:
    try:
        found = json.loads(path.read_text())
        return {
            key: {name: SelectedRate(**rate) for name, rate in rates.items()}
            for key, rates in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no file of rates ({error}); run the pilots again") from error
