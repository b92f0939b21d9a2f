"""The figures that most studies need: an arm a row with its seeds and its interval; and lines over depth, width or time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from deepjax.analysis.plots import COLORS, STYLE, Curve, draw_curve, save
from deepjax.study.stats.verdict import mean_interval

Scale = Literal["linear", "log"]
Rows = Mapping[str, Sequence[float]]  # label -> values by seed


def rows_figure(
    panels: Sequence[tuple[str, str, Rows]], path: Path, scale: Scale = "linear"
) -> Path:
    """Each arm a row: its seeds as small dots, their mean, and its 95 % interval as a bar. Written to `path`.

    panels: (title, label of x with its unit, rows); all share the labels of the rows, first at the top.
    """
    count = max(len(rows) for _, _, rows in panels)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(5.2 * len(panels), 1.4 + 0.42 * count), squeeze=False
        )
        for i, (ax, (title, x_label, rows)) in enumerate(zip(axes[0], panels, strict=True)):
            _draw_rows(ax, rows, scale, labelled=i == 0 or list(rows) != list(panels[0][2]))
            ax.set(title=title, xlabel=x_label)
            if (
                x_label.endswith("error (%)") and scale == "linear"
            ):  # Student's interval knows no bounds, an error does
                low, high = ax.get_xlim()
                ax.set_xlim(max(low, -3.0), min(high, 103.0))
    return save(figure, path)


def _draw_rows(ax: Axes, rows: Rows, scale: Scale, labelled: bool) -> None:
    ax.set_xscale(scale)
    for y, values in enumerate(rows.values()):
        color = COLORS[y % len(COLORS)]
        interval = mean_interval(values) if len(values) > 1 else None
        if interval is not None:
            low = max(interval.low, 0.2 * min(values)) if scale == "log" else interval.low
            ax.plot(
                [low, interval.high],
                [y, y],
                "-",
                color=color,
                linewidth=3,
                alpha=0.35,
                solid_capstyle="butt",
            )
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
    """Lines with a band from the least to the greatest seed, each labelled at its end. Written to `path`.

    panels: (title, curves); a label that starts with "_" is not shown.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(5.2 * len(panels), 4.0), sharey=share_y, squeeze=False
        )
        for ax, (title, curves) in zip(axes[0], panels, strict=True):
            ax.set(xscale=x_scale, yscale=y_scale, title=title, xlabel=x_label)
            for curve in curves:
                draw_curve(ax, curve)
        for ax, (_, curves) in zip(
            axes[0], panels, strict=True
        ):  # once all are drawn, for panels share their limits
            _plain_ticks(
                ax,
                curves[0].x if all(list(curve.x) == list(curves[0].x) for curve in curves) else (),
            )
            _label_ends(ax, [curve for curve in curves if not curve.label.startswith("_")])
        axes[0, 0].set_ylabel(y_label)
    return save(figure, path)


def _plain_ticks(ax: Axes, x: Sequence[float]) -> None:
    """On logarithmic axes numbers as they are read: at the lines' common points of x where they are few; on y in a small range."""
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
        y = (
            float(np.exp(np.log(np.maximum(last, 1e-30)).mean()))
            if ax.get_yscale() == "log"
            else float(last.mean())
        )
        _, height = ax.transAxes.inverted().transform(ax.transData.transform((curve.x[-1], y)))
        ends.append((height, curve))
    place = -np.inf
    for height, curve in sorted(ends, key=lambda end: end[0]):
        place = max(height, place + 0.06)
        ax.annotate(
            curve.label,
            (1.01, place),
            xycoords="axes fraction",
            color=curve.color,
            va="center",
            fontsize="small",
            annotation_clip=False,
        )
