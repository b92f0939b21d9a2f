"""From the rows of arms to the lines of figures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deepjax.analysis.plots import COLORS, Curve
from deepjax.study.arms import ArmResult
from deepjax.study.stats.verdict import Interval

Panel = tuple[str, list[Curve]]  # title, lines
NormsBySeed = Callable[[ArmResult], list[dict[str, float]]]


def error_lines(arms: dict[str, ArmResult]) -> list[Curve]:
    """Error in per cent by epoch: training dashed, test solid, a circle for the final training error; a colour an arm."""
    lines = []
    for color, (label, arm) in zip(COLORS, arms.items(), strict=False):
        epochs = [arm.epochs(i) for i in range(len(arm.rows))]
        x = [row["epoch"] for row in epochs[0]]
        for name, key, line in (("train", "running_error", "--"), ("test", "test_error", "-")):
            lines.append(
                Curve(
                    f"{label}, {name}",
                    x,
                    [[100 * row[key] for row in rows] for rows in epochs],
                    color,
                    line,
                )
            )
        lines.append(
            Curve("_end", x[-1:], [[100 * error] for error in arm.final("train_error")], color, "o")
        )
    return lines


def final_lines(arms: dict[int, ArmResult]) -> list[Curve]:
    """Final error in per cent by depth, both sets in evaluation mode: for trainings too short to have a curve."""
    sets = (("train", "train_error", "o--"), ("test", "test_error", "o-"))
    return [
        Curve(
            label,
            list(arms),
            np.transpose([100 * np.asarray(arm.final(key)) for arm in arms.values()]).tolist(),
            color,
            line,
        )
        for (label, key, line), color in zip(sets, COLORS, strict=False)
    ]


def error_panels(kinds: Mapping[str, dict[int, ArmResult]]) -> tuple[list[Panel], str, str]:
    """Errors by kind of network and depth: panels, the label of x, and how they are drawn, for a caption.

    By epoch; by depth where training was too short to have a curve. Each title states the final training errors.
    """
    named = {
        kind: {f"{depth} layers": arm for depth, arm in arms.items()}
        for kind, arms in kinds.items()
    }
    curves = {kind: error_lines(arms) for kind, arms in named.items()}
    x_label, how = "epoch", "by epoch: training dashed (running, on augmented images), test solid"
    if all(len(lines[0].x) < 3 for lines in curves.values()):
        curves = {kind: final_lines(arms) for kind, arms in kinds.items()}
        x_label, how = (
            "layers",
            "at the end, by depth: training dashed, test solid, both in evaluation mode",
        )
    return [(_error_title(kind, arms), curves[kind]) for kind, arms in named.items()], x_label, how


def _error_title(kind: str, arms: dict[str, ArmResult]) -> str:
    errors = {label: percent(arm.final("train_error")) for label, arm in arms.items()}
    shallow, *_, deep = errors
    return f"{kind}: {deep} end at {errors[deep]}\ntraining error, {shallow} at {errors[shallow]}"


def norm_lines(arms: dict[str, ArmResult], norms: NormsBySeed, line: str) -> list[Curve]:
    """Gradient norm by layer; x runs from 0 at the input to 1 at the output, so that depths can be compared."""
    lines = []
    for color, (label, arm) in zip(COLORS, arms.items(), strict=False):
        by_seed = [list(by_layer.values()) for by_layer in norms(arm)]
        lines.append(
            Curve(label, np.linspace(0, 1, len(by_seed[0])).tolist(), by_seed, color, line)
        )
    return lines


def log_ratio(norms: dict[str, float]) -> float:
    """log10 of the median gradient norm of the third of the convolutions nearest the input over that nearest the output.

    norms: by layer, in the order of the forward pass; the last layer, the classifier, is left out.
    """
    convolutions = list(norms.values())[:-1]
    third = len(convolutions) // 3
    return float(np.log10(np.median(convolutions[:third]) / np.median(convolutions[-third:])))


def percent(values: Sequence[float]) -> str:
    """Fractions as a mean in per cent: '2.44 %'."""
    return f"{100 * float(np.mean(values)):.2f} %"


def format_ratio(interval: Interval) -> str:
    """An effect in log10 as a factor with its interval: '166 times [124, 193]'."""
    return f"{10**interval.effect:.3g} times [{10**interval.low:.3g}, {10**interval.high:.3g}]"


def plain_values(results: dict[str, ArmResult]) -> dict[str, Any]:
    """Every arm's rate, sweep and final values by seed, for result.json; a rate that halted is null."""
    keys = ("train_error", "test_error", "train_loss", "test_loss")
    return {
        name: {
            "rate": arm.rate,
            "sweep": {f"{r:g}": e if np.isfinite(e) else None for r, e in arm.sweep.items()},
        }
        | {key: arm.final(key) for key in keys}
        for name, arm in results.items()
    }
