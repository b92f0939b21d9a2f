"""progress.json: how far a training is within an epoch, for `deepjax runs watch`."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from deepjax.errors import InputError
from deepjax.io import write_text

NAME = "progress.json"
SECONDS = 5.0  # between two writes


class ProgressFile:
    """Writes it every few seconds. A write that fails is left out: nothing depends on the file."""

    def __init__(self, out: Path) -> None:
        self._path = out / NAME
        self._first: tuple[float, int] | None = None
        self._last = time.monotonic()

    def write(self, step: int, total: int, note: str) -> None:
        """Write the steps done, a note, and the time left at the pace since the first call."""
        now = time.monotonic()
        began, first = self._first = self._first or (now, step)
        if now - self._last < SECONDS or step == first:
            return
        self._last = now
        left = (now - began) / (step - first) * (total - step)
        found = {"step": step, "note": note, "seconds_left": round(left), "time": time.time()}
        with contextlib.suppress(InputError):
            write_text(self._path, json.dumps(found) + "\n")


def read_progress(out: Path) -> dict[str, Any] | None:
    """What a training wrote last; None where there is nothing."""
    try:
        found = json.loads((out / NAME).read_text())
        return found if isinstance(found["step"], int) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
