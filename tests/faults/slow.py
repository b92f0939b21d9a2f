"""experiments/train.py whose every step takes FAULT_PAUSE seconds longer, so that there is time to start it once more."""

import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deepjax.training import loop  # noqa: E402

if __name__ == "__main__":
    epoch_ends = loop.TrainLoop._epoch_ends  # asked after each step

    def slowly(run: loop.TrainLoop, step: int) -> bool:
        """The same answer, later."""
        time.sleep(float(os.environ["FAULT_PAUSE"]))
        return epoch_ends(run, step)

    loop.TrainLoop._epoch_ends = slowly
    runpy.run_path(str(ROOT / "experiments" / "train.py"), run_name="__main__")
