"""What the rows of a training tell beyond its errors: gradients of the first layer, the time of a step, the rates that train."""

from collections.abc import Mapping

import numpy as np

from deepjax.analysis.plots import COLORS, Curve
from deepjax.study.arms import ArmResult
from deepjax.study.report.html import Table

TRAINS = 0.5  # a rate trains if it ends with fewer errors than this on the training images


def first_layer_norms(arm: ArmResult, relative: bool = False) -> list[list[float]]:
    """Gradient norm of the first convolution, a mean over each epoch's steps: (seeds, epochs).

    `relative`: over that of the classifier, which tells a gradient that reaches further from a loss that is larger.
    """
    found = []
    for seed in range(len(arm.rows)):
        norms = [list(row["gradient_norms"].values()) for row in arm.epochs(seed)]
        found.append([each[0] / (each[-1] if relative else 1.0) for each in norms])
    return found


def seconds_table(arms: Mapping[str, ArmResult]) -> Table:
    """Time of a step by arm, evaluation included."""
    rows = []
    for name, arm in arms.items():
        ends = [arm.epochs(i)[-1] for i in range(len(arm.rows))]
        rows.append(
            [
                name,
                f"{1000 * float(np.median([end['seconds'] / end['step'] for end in ends])):.1f} ms",
            ]
        )
    return Table(
        "Time per step: median over seeds, evaluation included, other processes running",
        ("arm", "time"),
        rows,
    )


def rate_curves(arms: Mapping[str, ArmResult]) -> list[Curve]:
    """Training error in per cent by learning rate, a line an arm: the sweep, of the first seed; 100 where training halted."""
    curves = []
    for color, (label, arm) in zip(COLORS, arms.items(), strict=False):
        rates = sorted(arm.sweep)
        curves.append(
            Curve(label, rates, [[100 * min(arm.sweep[rate], 1.0) for rate in rates]], color, "o-")
        )
    return curves


def largest_rate(arm: ArmResult) -> str:
    """The largest rate of the sweep that trains, or 'none'."""
    trains = [rate for rate, error in arm.sweep.items() if error < TRAINS]
    return f"{max(trains):g}" if trains else "none"
