"""starts.jsonl: the command, versions and hardware of every process start of a run."""

import json
import time
from pathlib import Path
from typing import Any

import jax

from deepjax.io import write_text
from deepjax.provenance import provenance

NAME = "starts.jsonl"
Start = dict[str, Any]


def record_start(out: Path, step: int) -> None:
    """Add this start, from a step on; raises InputError if the file cannot be written."""
    hardware = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if jax.process_count() > 1:
        hardware += f" in {jax.process_count()} processes"
    found: Start = {"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    found |= provenance(0.0, hardware)
    del found["wall time"]
    lines = [json.dumps(start) + "\n" for start in (*read_starts(out), found)]
    write_text(out / NAME, "".join(lines))


def read_starts(out: Path) -> list[Start]:
    """The starts of a run, oldest first, without lines that are none."""
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
    return [each for each in found if isinstance(each, dict) and isinstance(each.get("step"), int)]
