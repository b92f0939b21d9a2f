"""weights.json: which weights a run started from, compared until its first checkpoint exists."""

import json
from pathlib import Path
from typing import Any

from deepjax.errors import InputError, describe_error
from deepjax.io import write_text
from deepjax.training.distributed.collectives import allgather_strings, on_primary
from deepjax.training.transfer.starting_weights import StartingWeights

NAME = "weights.json"


def pin_weights(out: Path, weights: StartingWeights) -> None:
    """Store the identity of the weights in a new run directory, or check it.

    All processes call this. Raises InputError if the processes have different weights, or the run
    began with others.
    """
    mine = weights.identity
    if len(set(allgather_strings(json.dumps(mine)))) > 1:
        raise InputError(
            f"the processes have different weights {mine['source']!r}; give all of them one file"
        )
    on_primary(lambda: _note(out / NAME, weights))


def read_identity(out: Path) -> dict[str, Any]:
    """The stored identity, and "new": the layers that the weights do not set.

    Empty for a run without weights; older runs have no "new". Raises InputError for a corrupt file.
    """
    path = out / NAME
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({describe_error(error)})") from error


def _note(path: Path, weights: StartingWeights) -> None:
    mine = weights.identity
    try:
        there = json.loads(path.read_text()) if path.exists() else mine
        changed = [name for name in mine if there.get(name) != mine[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({describe_error(error)}); choose another --output-dir"
        ) from error
    if changed:
        differences = "; ".join(f"{name} {mine[name]}, there {there.get(name)}" for name in changed)
        raise InputError(
            f"weights {mine['source']!r} are others than this run began with ({differences}); "
            "give those that it began with, or choose another --output-dir"
        )
    if not path.exists():
        write_text(path, json.dumps(mine | {"new": list(weights.new)}, indent=2) + "\n")
