"""Figures that most studies need: rows of arms with intervals, lines over depth or time.

First the figures, then the panels and curves made from arms.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from deepjax.analysis.plots import COLORS, STYLE, Curve, draw_curve, save
from deepjax.study.arm_result import ArmResult
from deepjax.study.report.format import format_count
from deepjax.study.report.html import Figure
from deepjax.study.stats.claims import SETS
from deepjax.study.stats.intervals import (
    difference_interval,
    mean_interval,
    percent,
    percent_points,
)

Scale = Literal["linear", "log"]
Rows = Mapping[str, Sequence[float]]  # label -> values by seed
RowsPanel = tuple[str, str, Rows]  # title, label of x with its unit, rows
LinesPanel = tuple[str, list[Curve]]  # title, lines
Norms = Callable[[ArmResult], list[dict[str, float]]]


def rows_figure(panels: Sequence[RowsPanel], path: Path, scale: Scale = "linear") -> Path:
    """A row for each arm: seeds as small dots, their mean, the 95 % interval as a bar.

    All panels have the labels of the first panel's rows, the first at the top. Written to `path`.
    """
    count = max(len(rows) for _, _, rows in panels)
    size = (5.2 * len(panels), 1.4 + 0.42 * count)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
        for i, (ax, (title, x_label, rows)) in enumerate(zip(axes[0], panels, strict=True)):
            _draw_rows(ax, rows, scale, labelled=i == 0 or list(rows) != list(panels[0][2]))
            ax.set(title=title, xlabel=x_label)
            # Student's interval knows no bounds, an error does.
            if x_label.endswith("error (%)") and scale == "linear":
                low, high = ax.get_xlim()
                ax.set_xlim(max(low, -3.0), min(high, 103.0))
    return save(figure, path)


def _draw_rows(ax: Axes, rows: Rows, scale: Scale, labelled: bool) -> None:
    ax.set_xscale(scale)
    bar = {"linewidth": 3, "alpha": 0.35, "solid_capstyle": "butt"}
    for y, values in enumerate(rows.values()):
        color = COLORS[y % len(COLORS)]
        if len(values) > 1:
            interval = mean_interval(values)
            low = max(interval.low, 0.2 * min(values)) if scale == "log" else interval.low
            ax.plot([low, interval.high], [y, y], "-", color=color, **bar)
        ax.plot(values, [y] * len(values), ".", color=color, markersize=4)
        ax.plot([float(np.mean(values))], [y], "o", color=color, markersize=7)
    ax.set_yticks(range(len(rows)), list(rows) if labelled else [""] * len(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)


def lines_figure(
    panels: Sequence[tuple[str, Sequence[Curve]]],
    path: Path,
    x_label: str,
    y_label: str,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    share_y: bool = True,
) -> Path:
    """Lines with a band from the minimum to the maximum over seeds, each labelled at its end.

    panels: (title, curves); a label that starts with "_" is not shown. Written to `path`.
    """
    size = (5.2 * len(panels), 4.0)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=share_y, squeeze=False)
        for ax, (title, curves) in zip(axes[0], panels, strict=True):
            ax.set(xscale=x_scale, yscale=y_scale, title=title, xlabel=x_label)
            for curve in curves:
                draw_curve(ax, curve)
        # Ticks and labels once all curves are drawn, since panels share their limits.
        for ax, (_, curves) in zip(axes[0], panels, strict=True):
            first = curves[0].x
            _log_ticks(ax, first if all(list(each.x) == list(first) for each in curves) else ())
            _label_ends(ax, [curve for curve in curves if not curve.label.startswith("_")])
        axes[0, 0].set_ylabel(y_label)
    return save(figure, path)


def _log_ticks(ax: Axes, x: Sequence[float]) -> None:
    """Plain numbers on logarithmic axes: at the points x if they are few; on y in a small range."""
    if ax.get_xscale() == "log" and 0 < len(x) <= 10:
        ax.set_xticks(list(x), [f"{value:g}" for value in x])
        ax.xaxis.set_minor_locator(NullLocator())
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high < 300 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _label_ends(ax: Axes, curves: Sequence[Curve]) -> None:
    """Each label to the right of its line's end, moved apart where ends are close."""
    ends = []
    for curve in curves:
        last = np.asarray(curve.y, float)[:, -1]
        log = ax.get_yscale() == "log"
        y = float(np.exp(np.log(np.maximum(last, 1e-30)).mean()) if log else last.mean())
        _, height = ax.transAxes.inverted().transform(ax.transData.transform((curve.x[-1], y)))
        ends.append((height, curve))
    style: dict[str, Any] = {
        "xycoords": "axes fraction",
        "va": "center",
        "fontsize": "small",
        "annotation_clip": False,
    }
    place = -np.inf
    for height, curve in sorted(ends, key=lambda end: end[0]):
        place = max(height, place + 0.06)
        ax.annotate(curve.label, (1.01, place), color=curve.color, **style)


def profile_figure(
    path: Path,
    title: str,
    axes: tuple[str, str],
    rows: Mapping[str, Sequence[Sequence[float]]],
    start: int = 1,
    **scale: Any,
) -> Figure:
    """Values by layer, block or depth: a line for each row, (seeds, points), from x = `start` on.

    axes: labels of x and y; `scale`: of `lines_figure`.
    """
    curves = [
        Curve(name, range(start, start + len(y[0])), y, color)
        for (name, y), color in zip(rows.items(), COLORS, strict=False)
    ]
    caption = (
        f"{axes[1].capitalize()} by {axes[0]}. Mean over seeds, band from the least to the "
        "greatest."
    )
    return Figure(lines_figure([(title, curves)], path, *axes, **scale), caption)


def maps_figure(rows: Sequence[Sequence[tuple[str, np.ndarray]]], path: Path, label: str) -> Path:
    """Rows of (title, map), each map relative to its peak. Written to `path`.

    maps: (height, width); label: of the colour bar.
    """
    columns = len(rows[0])
    layout: dict[str, Any] = {"figsize": (4.3 * columns, 3.7 * len(rows)), "squeeze": False}
    style: dict[str, Any] = {"cmap": "magma", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(len(rows), columns, sharex=True, sharey=True, **layout)
        for line, row in zip(axes, rows, strict=True):
            for ax, (title, values) in zip(line, row, strict=True):
                image = ax.imshow(values / values.max(), **style)
                ax.set(title=title)
                ax.grid(False)
            line[0].set_ylabel("row (pixels)")
        for ax in axes[-1]:
            ax.set_xlabel("column (pixels)")
        figure.colorbar(image, ax=list(axes.flat), shrink=0.6, label=label)
    return save(figure, path)


def cost_error_panel(
    arms: Mapping[str, ArmResult],
    macs: Mapping[str, int],
    which: Literal["train", "test"],
    one: str,
    others: Sequence[str],
) -> RowsPanel:
    """Final errors by arm, labelled with its multiply-adds.

    The title has the error of arm `one` minus that of each of `others`.
    """
    errors = {name: arm.final(f"{which}_error") for name, arm in arms.items()}
    title = [f"{SETS[which].capitalize()} error of {arm_label(one)}, less that of"]
    for name in others:
        gap = percent_points(difference_interval(errors[one], errors[name]))
        title.append(f"{arm_label(name)}: {gap}")
    rows = {
        f"{arm_label(name)}\n{format_count(macs[name])} multiply-adds": [100 * e for e in by_seed]
        for name, by_seed in errors.items()
    }
    return "\n".join(title), f"final {SETS[which]} error (%)", rows


def arm_label(name: str) -> str:
    """An arm's name as words."""
    return name.replace("_", " ")


def error_panels(kinds: Mapping[str, Mapping[int, ArmResult]]) -> tuple[list[LinesPanel], str, str]:
    """Errors of kinds of networks by depth: panels, the label of x, and a caption.

    By epoch, or by depth where training was too short for a curve. Titles have the final training
    errors.
    """
    named = {
        kind: {f"{depth} layers": arm for depth, arm in arms.items()}
        for kind, arms in kinds.items()
    }
    curves = {kind: epoch_error_curves(arms) for kind, arms in named.items()}
    x_label, caption = (
        "epoch",
        "by epoch: training dashed (running, on augmented images), test solid",
    )
    if all(len(lines[0].x) < 3 for lines in curves.values()):
        curves = {kind: final_error_curves(arms) for kind, arms in kinds.items()}
        x_label = "layers"
        caption = "at the end, by depth: training dashed, test solid, both in evaluation mode"
    panels = [(_error_title(kind, arms), curves[kind]) for kind, arms in named.items()]
    return panels, x_label, caption


def _error_title(kind: str, arms: Mapping[str, ArmResult]) -> str:
    errors = {label: percent(arm.final("train_error")) for label, arm in arms.items()}
    shallow, *_, deep = errors
    return f"{kind}: {deep} end at {errors[deep]}\ntraining error, {shallow} at {errors[shallow]}"


def epoch_error_curves(arms: Mapping[str, ArmResult]) -> list[Curve]:
    """Error in per cent by epoch, a colour for each arm.

    Training dashed, test solid, a circle for the final training error.
    """
    curves = []
    for color, (label, arm) in zip(COLORS, arms.items(), strict=False):
        epochs = [arm.epochs(i) for i in range(len(arm.rows))]
        x = [row["epoch"] for row in epochs[0]]
        for name, key, line in (("train", "running_error", "--"), ("test", "test_error", "-")):
            y = [[100 * row[key] for row in rows] for rows in epochs]
            curves.append(Curve(f"{label}, {name}", x, y, color, line))
        final = [[100 * error] for error in arm.final("train_error")]
        curves.append(Curve("_end", x[-1:], final, color, "o"))
    return curves


def final_error_curves(arms: Mapping[int, ArmResult]) -> list[Curve]:
    """Final error in per cent by depth, both sets in evaluation mode."""
    curves = []
    sets = (("train", "train_error", "o--"), ("test", "test_error", "o-"))
    for (label, key, line), color in zip(sets, COLORS, strict=False):
        errors = np.transpose([100 * np.asarray(arm.final(key)) for arm in arms.values()])
        curves.append(Curve(label, list(arms), errors.tolist(), color, line))
    return curves


def epoch_test_error_curves(arms: Mapping[str, ArmResult]) -> list[Curve]:
    """Test error in per cent by epoch, a line for each arm."""
    curves = []
    for color, (label, arm) in zip(COLORS, arms.items(), strict=False):
        by_seed = [arm.epochs(seed) for seed in range(len(arm.rows))]
        errors = [[100 * row["test_error"] for row in rows] for rows in by_seed]
        curves.append(Curve(label, [row["epoch"] for row in by_seed[0]], errors, color))
    return curves


def rate_curves(arms: Mapping[str, ArmResult]) -> list[Curve]:
    """The sweep of the first seed: training error in per cent by learning rate, a line per arm.

    100 where training halted.
    """
    curves = []
    for color, (label, arm) in zip(COLORS, arms.items(), strict=False):
        rates = sorted(arm.sweep)
        errors = [[100 * min(arm.sweep[rate], 1.0) for rate in rates]]
        curves.append(Curve(label, rates, errors, color, "o-"))
    return curves


def norm_curves(arms: Mapping[str, ArmResult], norms: Norms, line: str) -> list[Curve]:
    """Gradient norm by layer, with x from 0 at the input to 1 at the output to compare depths."""
    curves = []
    for color, (label, arm) in zip(COLORS, arms.items(), strict=False):
        by_seed = [list(by_layer.values()) for by_layer in norms(arm)]
        x = np.linspace(0, 1, len(by_seed[0])).tolist()
        curves.append(Curve(label, x, by_seed, color, line))
    return curves
