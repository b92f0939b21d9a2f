"""experiments/train.py as one of many processes: it logs what it reads, and may be slow or die.

MEMBER_LOG: the folder of its log. MEMBER_SLEEPS, MEMBER_DIES: the process that sleeps 20 s, or
kills itself, after the step that MEMBER_STEP names.
"""

import json
import os
import runpy
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deepjax.data import dataset_info, load_split, loader  # noqa: E402
from deepjax.training import plan  # noqa: E402

PROCESS = dict(pairwise(sys.argv)).get("--hosts.process-id", "")
SECONDS = 20.0


def log_reads(folder: Path) -> None:
    """A row for each batch that is read: its step and the ids of its images, found by pixels."""
    images = load_split(dataset_info("digits"), "train").images  # pyright: ignore
    ids = {image.tobytes(): i for i, image in enumerate(images)}
    assert len(ids) == len(images)
    read = loader.TrainBatches.__getitem__

    def logged(batches: loader.TrainBatches, step: Any) -> loader.Batch:
        batch = read(batches, step)
        row = {"step": int(step), "ids": [ids[image.tobytes()] for image in batch["image"]]}
        with (folder / f"{PROCESS}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        return batch

    loader.TrainBatches.__getitem__ = logged


def misbehave() -> None:
    """Sleep or die after a step, if this is the process to do so."""
    calls = 0
    epoch_ends = plan.TrainPlan.is_epoch_end  # asked once before the first step, then after each

    def counted(run: plan.TrainPlan, done: int) -> bool:
        nonlocal calls
        calls += 1
        if calls == int(os.environ["MEMBER_STEP"]) + 1:
            if os.environ.get("MEMBER_SLEEPS") == PROCESS:
                time.sleep(SECONDS)
            if os.environ.get("MEMBER_DIES") == PROCESS:
                os.kill(os.getpid(), signal.SIGKILL)
        return epoch_ends(run, done)

    plan.TrainPlan.is_epoch_end = counted


if __name__ == "__main__":
    Path(os.environ["MEMBER_LOG"]).mkdir(exist_ok=True)
    log_reads(Path(os.environ["MEMBER_LOG"]))
    if "MEMBER_STEP" in os.environ:
        misbehave()
    runpy.run_path(str(ROOT / "experiments" / "train.py"), run_name="__main__")
