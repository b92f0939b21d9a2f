"""experiments/train.py that prints STEPPED after its first step, and SAVED after its last save."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deepjax.training import plan  # noqa: E402
from deepjax.training.checkpoint import manager  # noqa: E402

STEPPED, SAVED = "STEPPED", "SAVED"


def then_says(function: Callable[..., Any], word: str, call: int) -> Callable[..., Any]:
    """The function, after whose `call`-th call the word is said."""
    calls = 0

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        result = function(*arguments, **keywords)
        calls += 1
        if calls == call:
            print(word, flush=True)
        return result

    return wrapped


if __name__ == "__main__":
    # Asked once before the first step, and then after each.
    plan.TrainPlan.is_epoch_end = then_says(plan.TrainPlan.is_epoch_end, STEPPED, 2)
    manager.Checkpoints.save_last = then_says(manager.Checkpoints.save_last, SAVED, 1)
    runpy.run_path(str(ROOT / "experiments" / "train.py"), run_name="__main__")
