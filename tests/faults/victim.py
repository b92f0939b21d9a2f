"""experiments/train.py that sends itself SIGTERM in FAULT_PHASE, the FAULT_WHEN-th time.

It prints how many seconds it lived after the end of that step.
"""

import atexit
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deepjax.training import build, graceful_stop, memory, plan  # noqa: E402
from deepjax.training.checkpoint import manager  # noqa: E402
from deepjax.training.distributed import sharding  # noqa: E402

PHASE, WHEN = os.environ.get("FAULT_PHASE"), int(os.environ.get("FAULT_WHEN", "1"))
_sent: list[float] = []
_stepped: list[float] = []  # when the step that the signal fell into had ended


def terminate() -> None:
    """SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)
    _sent.append(time.monotonic())


def at(when: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with SIGTERM in its `when`-th call."""
    calls = 0

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            terminate()
            if PHASE == "twice":
                terminate()
        return function(*arguments, **keywords)

    return wrapped


def in_evaluation(when: int) -> None:
    """SIGTERM in the `when`-th batch that is evaluated."""
    compile_eval = sharding.Partitioner.compile_eval
    sharding.Partitioner.compile_eval = lambda *arguments: at(when, compile_eval(*arguments))


def arm() -> None:
    """Put the signal where the phase is."""
    if PHASE == "compile":
        build.compile_step = at(1, memory.compile_step)
    elif PHASE in ("train", "twice"):
        plan.TrainPlan.is_epoch_end = at(3 * WHEN, plan.TrainPlan.is_epoch_end)
    elif PHASE == "save":
        manager.Checkpoints._finish = at(WHEN, manager.Checkpoints._finish)
    elif PHASE == "eval":
        in_evaluation(2 * WHEN)  # two batches hold the test images
    elif PHASE == "last step":
        manager.Checkpoints.save_last = at(1, manager.Checkpoints.save_last)
    else:  # the final evaluation comes after three epochs of two batches
        in_evaluation(6 + WHEN)


def leave() -> None:
    """How long it lived after the step that the signal fell into."""
    if _sent:
        print(f"ENDED {time.monotonic() - (_stepped or _sent)[0]:.2f}", file=sys.stderr, flush=True)


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which is called after each step, noting the first call after the signal."""

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if _sent and not _stepped:
            _stepped.append(time.monotonic())
        return function(*arguments, **keywords)

    return wrapped


if __name__ == "__main__":
    arm()
    plan.TrainPlan.is_epoch_end = watched(plan.TrainPlan.is_epoch_end)
    # Called right after compilation, and between batches of an evaluation.
    graceful_stop.GracefulStop.stop_if_preempted = watched(
        graceful_stop.GracefulStop.stop_if_preempted
    )
    atexit.register(leave)
    runpy.run_path(str(ROOT / "experiments" / "train.py"), run_name="__main__")
