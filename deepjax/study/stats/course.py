"""The course of training: epochs to a target, compared between arms, and test error by epoch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deepjax.analysis.plots import COLORS, Curve
from deepjax.study.arms import ArmResult
from deepjax.study.stats.verdict import Interval, Outcome, Verdict, paired_interval


def epochs_to(arm: ArmResult, target: float) -> list[float]:
    """The first epoch whose test error, a fraction, is below the target, seed by seed; where none is, one more than there are."""
    found = []
    for seed in range(len(arm.rows)):
        rows = arm.epochs(seed)
        found.append(
            float(
                next(
                    (row["epoch"] for row in rows if row["test_error"] < target),
                    rows[-1]["epoch"] + 1,
                )
            )
        )
    return found


def compare_epochs_to_target(
    claim: str,
    first: tuple[str, Sequence[float]],
    second: tuple[str, Sequence[float]],
    rule: str,
    decide: Callable[[Sequence[Interval]], Outcome],
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """Epochs to a target of the first less those of the second, by a rule, paired by seed; each is (name, epochs by seed)."""
    gap = paired_interval(first[1], second[1])
    means = ", ".join(f"{name} {np.mean(epochs):.1f}" for name, epochs in (first, second))
    found = f"epochs: {means}, difference {gap.effect:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
    measure = "First epoch with a test error below the target; difference paired by seed, Student's 95 % interval."
    values = {name: list(epochs) for name, epochs in (first, second)}
    return Verdict(claim, measure, rule, decide([gap]), (found,), {"epochs": gap}, values, control)


def test_lines(arms: Mapping[str, ArmResult]) -> list[Curve]:
    """Test error in per cent by epoch, a line an arm."""
    lines = []
    for color, (label, arm) in zip(COLORS, arms.items(), strict=False):
        by_seed = [arm.epochs(seed) for seed in range(len(arm.rows))]
        errors = [[100 * row["test_error"] for row in rows] for rows in by_seed]
        lines.append(Curve(label, [row["epoch"] for row in by_seed[0]], errors, color))
    return lines
