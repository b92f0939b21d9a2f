"""experiments/train.py with steps that take FAULT_PAUSE seconds longer, for a second start."""

import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deepjax.training import plan  # noqa: E402

if __name__ == "__main__":
    epoch_ends = plan.TrainPlan.is_epoch_end  # asked after each step

    def slowly(run: plan.TrainPlan, done: int) -> bool:
        """The same answer, later."""
        time.sleep(float(os.environ["FAULT_PAUSE"]))
        return epoch_ends(run, done)

    plan.TrainPlan.is_epoch_end = slowly
    runpy.run_path(str(ROOT / "experiments" / "train.py"), run_name="__main__")
