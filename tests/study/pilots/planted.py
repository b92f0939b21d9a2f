"""Runs with planted errors, in place of trained ones."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.io import write_text
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.predictions import FILE
from deepjax.training.metrics.metrics_log import METRICS
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.numerics import claim_numerics

Curve = Callable[[float], float]
"""The octaves of a rate above 0.1 to an error, a fraction."""


def planted_runner(curve: Curve) -> type:
    """A class for `deepjax.study.pilots.sweep.Runner` whose runs have the errors of a curve.

    The first wrong images are the first ones; a seed adds a tenth of a point. An error of 1
    diverges.
    """

    class Planted:
        def __init__(self, arm: TrainedArm, out: Path, *_: Any) -> None:
            self.arm, self.out = arm, out

        def run(self, rate: float, seed: int, *_: Any) -> None:
            run_dir = self.arm.run_dir(self.out, rate, seed)
            if run_dir.exists():
                return
            error = curve(math.log2(rate / 0.1)) + 0.001 * (seed % 10)
            kind = "halted" if error >= 1 else "final"
            claim_numerics(run_dir)
            init_run_dir(run_dir, self.arm.run_config(rate, seed))
            write_text(run_dir / METRICS, f'{{"kind": "{kind}", "step": 6}}\n')
            if kind == "final":
                counts = {"train": 1437, "test": 360}
                wrong = {split: np.arange(n) < error * n for split, n in counts.items()}
                np.savez(run_dir / FILE, **wrong)

    return Planted
