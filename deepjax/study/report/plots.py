"""Primitives of the studies' figures: rows of values with intervals, lines, maps.

Each returns a figure of panels; `study_figures.py` makes panels from results.
"""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from deepjax.analysis.plots import COLORS, STYLE, Curve, draw_curve
from deepjax.study.report.format import format_count
from deepjax.study.stats.intervals import mean_interval

Scale = Literal["linear", "log"]
Rows = Mapping[str, Sequence[float]]  # label -> values by seed
Lines = Mapping[str, float]  # label -> where a reference line is
CHARACTERS_PER_INCH = 11.5  # of a title
_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8}


@dataclasses.dataclass(frozen=True)
class RowsPanel:
    """A row of values for each label."""

    title: str
    x_label: str
    rows: Rows
    references: Lines = dataclasses.field(default_factory=dict)
    """Vertical lines, such as the error of a linear classifier."""


@dataclasses.dataclass(frozen=True)
class LinesPanel:
    """Lines over x."""

    title: str
    curves: Sequence[Curve]
    references: Lines = dataclasses.field(default_factory=dict)
    """Horizontal lines."""


def rows_figure(
    title: str, panels: Sequence[RowsPanel], scale: Scale = "linear", lowest: float = 0.2
) -> Figure:
    """A row for each label: seeds as small dots, their mean, the 95 % interval as a bar.

    Two seeds have no bar. All panels have the labels of the first panel's rows, the first at the
    top. On a logarithmic axis a bar ends at `lowest` times the least value, as an interval may
    reach 0.
    """
    count = max(len(panel.rows) for panel in panels)
    size = (5.2 * len(panels) + 1.2, 1.9 + 0.42 * count)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
        for i, (ax, panel) in enumerate(zip(axes[0], panels, strict=True)):
            own = i == 0 or list(panel.rows) != list(panels[0].rows)
            _draw_rows(ax, panel.rows, scale, own, lowest)
            ax.set(title=panel.title, xlabel=panel.x_label)
            for label, x in panel.references.items():
                ax.axvline(x, color="0.45", linestyle=":", linewidth=1.2, zorder=0)
                # Of two lines each has its label on its outer side.
                left = len(panel.references) > 1 and x == min(panel.references.values())
                ax.annotate(
                    label, (x, 1), (-3 if left else 3, -3), ha="right" if left else "left",
                    xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
                    fontsize=7.5, color="0.35", rotation=90,
                )  # fmt: skip
        set_title(figure, title)
    return figure


def set_title(figure: Figure, title: str) -> None:
    """The title at the left, each of its lines wrapped into parts of about equal length."""
    width = int(CHARACTERS_PER_INCH * figure.get_figwidth())
    lines: list[str] = []
    for line in title.split("\n"):
        parts = -(-len(line) // width)
        balanced = min(width, -(-len(line) // max(1, parts)) + 8)
        lines += textwrap.wrap(line, balanced) or [""]
    figure.suptitle("\n".join(lines), x=0.01, ha="left")


def _draw_rows(ax: Axes, rows: Rows, scale: Scale, labelled: bool, lowest: float) -> None:
    ax.set_xscale(scale)
    bar = {"linewidth": 3, "alpha": 0.35, "solid_capstyle": "butt"}
    for y, values in enumerate(rows.values()):
        color = COLORS[y % len(COLORS)]
        if len(values) > 2:  # that of two seeds is so wide that it hides the rest
            low, high = mean_interval(values).bounds()
            low = max(low, lowest * min(values)) if scale == "log" else low
            ax.plot([low, high], [y, y], "-", color=color, **bar)
        ax.plot(values, [y] * len(values), ".", color=color, markersize=4)
        ax.plot([float(np.mean(values))], [y], "o", color=color, markersize=7)
    ax.set_yticks(range(len(rows)), list(rows) if labelled else [""] * len(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)


def lines_figure(
    title: str,
    panels: Sequence[LinesPanel],
    axes_labels: tuple[str, str],
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    share_y: bool = True,
    x_ticks: Sequence[float] = (),
    labels_at: float = 0.5,
) -> Figure:
    """Lines with a band from the minimum to the maximum over seeds, each labelled at its end.

    axes_labels: of x and y; a curve's label that starts with "_" is not shown. labels_at: where
    along the axis the labels of reference lines are, from 0 to 1.
    """
    size = (5.2 * len(panels) + 1.2, 4.4)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=share_y, squeeze=False)
        for ax, panel in zip(axes[0], panels, strict=True):
            ax.set(xscale=x_scale, yscale=y_scale, title=panel.title, xlabel=axes_labels[0])
            for curve in panel.curves:
                draw_curve(ax, curve)
            if panel.references and y_scale == "linear":
                ax.margins(y=0.1)  # room for their labels
            for label, y in panel.references.items():
                ax.axhline(y, color="0.45", linestyle=":", linewidth=1.2, zorder=0)
                low = y == min(panel.references.values())
                ax.annotate(
                    label, (labels_at, y), (0, -3 if low else 2), va="top" if low else "bottom",
                    xycoords=("axes fraction", "data"), textcoords="offset points",
                    ha="center" if labels_at == 0.5 else "left",
                    fontsize=7.5, color="0.35", bbox=_BACKGROUND, zorder=1,  # below the curves
                )  # fmt: skip
        # Ticks and labels once all curves are drawn, since panels share their limits.
        for ax, panel in zip(axes[0], panels, strict=True):
            _log_ticks(ax, x_ticks)
            if not x_ticks and x_scale == "linear" and _are_whole(panel.curves):
                ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            _label_ends(ax, [curve for curve in panel.curves if not curve.label.startswith("_")])
        axes[0, 0].set_ylabel(axes_labels[1])
        set_title(figure, title)
    return figure


def _are_whole(curves: Sequence[Curve]) -> bool:
    """Whether x counts something, such as layers."""
    return all(float(x).is_integer() for curve in curves for x in curve.x)


def _log_ticks(ax: Axes, x: Sequence[float]) -> None:
    """Ticks of x at the given points, in plain numbers; plain numbers on y in a small range."""
    if x:
        ax.set_xticks(list(x), [f"{value:g}" for value in x])
        ax.xaxis.set_minor_locator(NullLocator())
    elif ax.get_xscale() == "log" and ax.get_xlim()[1] < 300 * ax.get_xlim()[0]:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high < 300 * low:
        narrow = high < 8 * low
        ax.yaxis.set_major_locator(
            LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if narrow else (1, 2, 5))
        )
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


def maps_figure(title: str, rows: Sequence[Sequence[tuple[str, np.ndarray]]], label: str) -> Figure:
    """Rows of (title, map), each map relative to its peak.

    maps: (height, width); label: of the colour bar.
    """
    columns = len(rows[0])
    layout: dict[str, Any] = {"figsize": (4.3 * columns, 3.7 * len(rows)), "squeeze": False}
    style: dict[str, Any] = {"cmap": "magma", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(len(rows), columns, sharex=True, sharey=True, **layout)
        for line, row in zip(axes, rows, strict=True):
            for ax, (name, values) in zip(line, row, strict=True):
                image = ax.imshow(values / values.max(), **style)
                ax.set(title=name)
                ax.grid(False)
            line[0].set_ylabel("row (pixels)")
        for ax in axes[-1]:
            ax.set_xlabel("column (pixels)")
        figure.colorbar(image, ax=list(axes.flat), shrink=0.6, label=label)
        set_title(figure, title)
    return figure
