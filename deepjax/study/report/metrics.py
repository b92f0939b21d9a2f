"""Numbers and tables from the logged rows of arms: errors, gradients, step times, rates."""

from collections.abc import Mapping, Sequence

import numpy as np

from deepjax.study.arm_result import ArmResult
from deepjax.study.report.html import Table
from deepjax.study.stats.intervals import percent

TRAINS = 0.5  # a rate trains if its final training error is below this fraction


def epochs_to(arm: ArmResult, target: float) -> list[float]:
    """By seed, the first epoch with a test error, a fraction, below the target.

    The number of epochs + 1 where there is none.
    """
    found = []
    for seed in range(len(arm.rows)):
        rows = arm.epochs(seed)
        reached = (row["epoch"] for row in rows if row["test_error"] < target)
        found.append(float(next(reached, rows[-1]["epoch"] + 1)))
    return found


def first_layer_norms(arm: ArmResult, relative: bool = False) -> list[list[float]]:
    """Gradient norm of the first convolution, mean over each epoch's steps: (seeds, epochs).

    `relative`: divided by that of the classifier, which removes the size of the loss.
    """
    found = []
    for seed in range(len(arm.rows)):
        norms = [list(row["gradient_norms"].values()) for row in arm.epochs(seed)]
        found.append([each[0] / (each[-1] if relative else 1.0) for each in norms])
    return found


def largest_rate(arm: ArmResult) -> str:
    """The largest rate of the sweep that trains, or 'none'."""
    trains = [rate for rate, error in arm.sweep.items() if error < TRAINS]
    return f"{max(trains):g}" if trains else "none"


def step_time_table(arms: Mapping[str, ArmResult]) -> Table:
    """Time of a step by arm, evaluation included."""
    rows = []
    for name, arm in arms.items():
        ends = [arm.epochs(i)[-1] for i in range(len(arm.rows))]
        seconds = float(np.median([end["seconds"] / end["step"] for end in ends]))
        rows.append([name, f"{1000 * seconds:.1f} ms"])
    return Table(
        "Time per step: median over seeds, evaluation included, other processes running",
        ("arm", "time"),
        rows,
    )


def final_error_table(arms: Mapping[str, ArmResult]) -> Table:
    """Final errors of every arm, mean and by seed."""
    rows = []
    for name, arm in arms.items():
        label = name
        if arm.diverged:
            label += f" ({arm.diverged} of {len(arm.rows)} diverged, and guess)"
        errors = []
        for key in ("train_error", "test_error"):
            by_seed = arm.final(key)
            each = ", ".join(f"{100 * error:.2f}" for error in by_seed)
            errors.append(f"{percent(by_seed)} ({each})")
        rows.append([label, f"{arm.rate:g}", *errors])
    header = ("arm", "rate", "training", "test")
    return Table("Final error: mean (seed by seed)", header, rows)


def sweep_table(arms: Mapping[str, ArmResult], rates: Sequence[float]) -> Table:
    """Training error of every arm at every learning rate, on the first seed."""
    rows = []
    for name, arm in arms.items():
        errors = arm.sweep.values()
        rows.append([name, *[f"{100 * e:.2f} %" if e < np.inf else "not finite" for e in errors]])
    return Table(
        "Training error by rate, on the first seed; the best is used",
        ("arm", *[f"{rate:g}" for rate in rates]),
        rows,
    )
