"""starts.jsonl: the command, versions and hardware of every process start of a run."""

import json
import time
from pathlib import Path

import jax

from deepjax.errors import InputError
from deepjax.provenance import provenance

NAME = "starts.jsonl"
Start = dict[str, str | int]


def record_start(out: Path, step: int) -> None:
    """Append this start, from a step on; raises InputError if the file cannot be written."""
    hardware = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if jax.process_count() > 1:
        hardware += f" in {jax.process_count()} processes"
    found: Start = {"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    found |= {
        name: value for name, value in provenance(0.0, hardware).items() if name != "wall time"
    }
    try:
        with (out / NAME).open("a") as file:
            file.write(json.dumps(found) + "\n")
    except OSError as error:
        raise InputError(
            f"cannot write {out / NAME}: {error.strerror}; free space, or choose another "
            "--output-dir"
        ) from error


def read_starts(out: Path) -> list[Start]:
    """The starts of a run, oldest first, without lines that a kill cut short."""
    try:
        lines = (out / NAME).read_text().splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [start for start in found if isinstance(start, dict)]
