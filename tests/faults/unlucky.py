"""experiments/train.py with a full disk once, in one part of a save, in process 0 alone."""

import errno
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from deepjax.training.checkpoint import manager  # noqa: E402

WHERE = {"folder": (manager.Checkpoints, "_make"), "manifest": (manager, "write_manifest")}


def fails_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose first call in the first process finds the disk full."""
    calls = 0

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1 and jax.process_index() == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments, **keywords)

    return wrapped


if __name__ == "__main__":
    owner, name = WHERE[os.environ["FAULT_PART"]]
    setattr(owner, name, fails_once(getattr(owner, name)))
    runpy.run_path(str(ROOT / "experiments" / "train.py"), run_name="__main__")
