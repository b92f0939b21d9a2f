"""The figures of losses along lines and on planes, of paths, of kernels and of linearised training; one Axes each."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from deepjax.analysis.landscape.surface import Line, Plane
from deepjax.analysis.landscape.trajectory import Trajectory
from deepjax.analysis.ntk.kernel import Drift, Kernel
from deepjax.analysis.ntk.linearised import LinearisedRun
from deepjax.analysis.plots import COLORS, canvas, format_number, format_percent, plain_log_ticks

WIDE = 20
"""Losses of which the largest is this many times the smallest are shown on a logarithmic scale."""


def draw_line(found: Line, ax: Any = None) -> Axes:
    """Loss to the left; accuracy, where it is known, to the right. Between two networks with the straight line of their losses."""
    with canvas(ax, 5.6, 3.9) as axes:
        axes.plot(found.at, _finite(found.loss), color=COLORS[0])
        if _wide(found.loss):
            axes.set_yscale("log")
        plain_log_ticks(axes)
        axes.set_ylabel("loss", color=COLORS[0])
        if found.accuracy is not None:
            other = axes.twinx()
            other.plot(found.at, found.accuracy, "--", color=COLORS[1])
            other.set_ylabel("accuracy (dashed)", color=COLORS[1])
            other.set_ylim(0, 1)
            other.yaxis.set_major_formatter(PercentFormatter(1))
            other.grid(False)
        if found.between:
            _draw_chord(axes, found)
        axes.set(
            xlabel="share of the way between both networks"
            if found.between
            else "multiple of the direction"
        )
        axes.set(title=f"{_line_title(found)}\n{_under(found)}", xlim=(found.at[0], found.at[-1]))
    return axes


def _draw_chord(ax: Axes, found: Line) -> None:
    first, last = (float(found.loss[np.abs(found.at - end).argmin()]) for end in (0, 1))
    at = np.linspace(0, 1, 101)
    ax.plot(at, (1 - at) * first + at * last, ":", color="0.45", linewidth=1.4)
    if not math.isfinite(found.barrier) or found.barrier <= 0.02 * float(
        np.nanmax(_finite(found.loss))
    ):
        return
    place = found.barrier_at
    foot = (1 - place) * first + place * last
    ax.annotate(
        "",
        (place, foot),
        (place, foot + found.barrier),
        arrowprops={"arrowstyle": "<->", "color": COLORS[0]},
    )
    middle = (
        math.sqrt(foot * (foot + found.barrier))
        if ax.get_yscale() == "log"
        else foot + found.barrier / 2
    )
    ax.text(place + 0.015, middle, f"barrier {found.barrier:.3g}", color=COLORS[0], va="center")


def _line_title(found: Line) -> str:
    known = _finite(found.loss)
    if np.isnan(known).all():
        return "No finite loss on the line"
    if not found.between:
        low, high = int(np.nanargmin(known)), int(np.nanargmax(known))
        return f"Loss from {known[low]:.3g} at {found.at[low]:.2g} to {known[high]:.3g} at {found.at[high]:.2g}"
    if not math.isfinite(found.barrier):
        return "The loss is not finite on the way"
    error = (
        ""
        if math.isnan(found.error_barrier)
        else f"; of the error {100 * found.error_barrier:.3g} points"
    )
    return (
        f"Barrier of the loss {found.barrier:.3g}{error}"
        if found.barrier > 0
        else f"No barrier of the loss{error}"
    )


def draw_plane(found: Plane, ax: Any = None) -> Axes:
    """Filled contours of the loss, the network as a cross, and the path of training where the plane is its."""
    losses = np.ma.masked_invalid(found.loss)
    with canvas(ax, 5.6, 4.6) as axes:
        low, high = (float(losses.min()), float(losses.max())) if losses.count() else (0.0, 0.0)
        log = _wide(found.loss)
        levels = np.geomspace(low, high, 25) if log else np.linspace(low, high + (high == low), 25)
        norm = LogNorm(levels[0], levels[-1]) if log else Normalize(levels[0], levels[-1])
        filled = axes.contourf(found.x, found.y, losses, levels, cmap="viridis", norm=norm)
        axes.contour(
            found.x, found.y, losses, levels[::2], colors="white", linewidths=0.5, alpha=0.7
        )
        bar = axes.figure.colorbar(
            filled, ax=axes, shrink=0.9, label="loss, logarithmic" if log else "loss"
        )
        ticks = (
            LogLocator(subs=(1, 2, 5)).tick_values(low, high)
            if log
            else MaxNLocator(6).tick_values(low, high)
        )
        bar.set_ticks([tick for tick in ticks if low <= tick <= high])
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        if found.path is not None:
            _draw_path(axes, found.path, "white")
        axes.plot([0], [0], "+", color=COLORS[1], markersize=11, markeredgewidth=2.2, zorder=5)
        across, up = _directions(found.path)
        downward = "none" if found.concave == 0 else format_percent(found.concave)
        title = f"Loss from {low:.3g} to {high:.3g}; {downward} of the plane curves down"
        axes.set(title=f"{title}\n{_under(found)}", xlabel=across, ylabel=up)
        axes.set(xlim=(found.x[0], found.x[-1]), ylim=(found.y[0], found.y[-1]))
        axes.grid(False)
    return axes


def draw_trajectory(found: Trajectory, ax: Any = None) -> Axes:
    """The path from its first point to its last, coloured by time."""
    with canvas(ax, 5.2, 4.2) as axes:
        x, y = found.coordinates.T
        _draw_path(axes, found, "0.55")
        points = axes.scatter(x, y, c=np.arange(len(x)), cmap="viridis", s=22, zorder=4)
        axes.figure.colorbar(
            points, ax=axes, shrink=0.85, label="point", ticks=MaxNLocator(5, integer=True)
        )
        across, up = _directions(found)
        title = f"{format_percent(found.share)} of the path's variance lies in this plane"
        axes.set(
            title=f"{title}\na random walk of {len(x)} points: {format_percent(found.random_walk)}",
            xlabel=across,
            ylabel=up,
        )
        axes.margins(0.12)
    return axes


def _draw_path(ax: Axes, path: Trajectory, color: str) -> None:
    x, y = path.coordinates.T
    ax.plot(x, y, "o-", color=color, linewidth=1.3, markersize=3, zorder=3)
    ends = {"start": 0, "end": -1}
    for label, place in ends.items():
        ax.annotate(
            label, (x[place], y[place]), (6, 6), textcoords="offset points", zorder=6,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}, fontsize=9,
        )  # fmt: skip


def _directions(path: Trajectory | None) -> tuple[str, str]:
    if path is None:
        return "multiple of the first direction", "multiple of the second direction"
    first, second = (format_percent(float(share)) for share in path.shares[:2])
    return f"first principal direction ({first} of the variance)", f"second ({second})"


def draw_kernel(found: Kernel, ax: Any = None) -> Axes:
    """The eigenvalues by rank, from the largest; of a kernel between two sets of inputs its entries."""
    if not found.symmetric:
        return _draw_entries(found, ax)
    values = found.eigenvalues
    with canvas(ax, 5.4, 3.9) as axes:
        axes.set_yscale("log")
        rank = np.arange(1, len(values) + 1)
        known = values > found.rounding
        axes.plot(rank[known], values[known], "o-", color=COLORS[0], ms=3.5)
        if not known.all():
            axes.axhline(found.rounding, color="0.5", linestyle="--", linewidth=1)
            label = f"{(~known).sum()} more, below rounding"
            axes.text(
                0.99,
                found.rounding,
                label,
                color="0.4",
                ha="right",
                va="bottom",
                transform=axes.get_yaxis_transform(),
            )
        condition = (
            f"condition {format_number(found.condition)}"
            if math.isfinite(found.condition)
            else "singular but for rounding"
        )
        share = float(values[0] / values.sum())
        under = f"{found.matrix.shape[0]} examples, {found.outputs} output{'s' * (found.outputs > 1)}, {found.parameters:,} parameters"
        axes.set(
            title=f"Tangent kernel: {condition}, {format_percent(share)} in the first eigenvector\n{under}"
        )
        axes.set(xlabel="rank", ylabel="eigenvalue")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_log_ticks(axes)
    return axes


def _draw_entries(found: Kernel, ax: Any) -> Axes:
    matrix = found.square
    with canvas(ax, 5.0, 4.2) as axes:
        limit = float(np.abs(matrix).max()) or 1.0
        image = axes.imshow(
            matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto"
        )
        axes.figure.colorbar(image, ax=axes, shrink=0.85, label="kernel")
        unit = " x output" if found.output == "full" else ""
        axes.set(
            title=f"Tangent kernel between two sets: mean {format_number(float(matrix.mean()))}"
        )
        axes.set(xlabel=f"other example{unit}", ylabel=f"example{unit}")
        axes.grid(False)
    return axes


def draw_drift(found: Drift, ax: Any = None) -> Axes:
    """Each entry before and after, with the line of no change; those of one example apart from those of two."""
    before, after = found.kernel_0.square, found.kernel_t.square
    diagonal = np.eye(len(before), dtype=bool)
    with canvas(ax, 4.8, 4.4) as axes:
        low, high = float(min(before.min(), after.min())), float(max(before.max(), after.max()))
        axes.plot([low, high], [low, high], "--", color="0.5", linewidth=1)
        axes.plot(
            before[~diagonal],
            after[~diagonal],
            ".",
            color=COLORS[0],
            ms=4,
            alpha=0.5,
            label="two examples",
        )
        axes.plot(
            before[diagonal],
            after[diagonal],
            "o",
            color=COLORS[1],
            ms=4,
            label="an example with itself",
        )
        title = f"The kernel moved by {format_percent(found.drift)}\nalignment {found.alignment:.4g}, norm x {found.growth:.3g}"
        axes.set(title=title, xlabel="$K_0$", ylabel="$K_t$ (dashed: no change)")
        axes.legend(loc="upper left")
    return axes


def draw_linearised(found: LinearisedRun, ax: Any = None) -> Axes:
    """How far the outputs moved, and how far the linear network's lie from them, by step on logarithmic axes."""
    steps = np.arange(len(found.rmse))
    lines = {
        "outputs moved from the start": (found.moved, "-"),
        "network against its linearisation": (found.rmse, "--"),
    }
    with canvas(ax, 5.6, 4.0) as axes:
        axes.set_yscale("log")
        for (label, (values, style)), color in zip(lines.items(), COLORS, strict=False):
            axes.plot(
                steps[1:], np.where(values > 0, values, np.nan)[1:], style, color=color, label=label
            )
        if len(steps) > 50:
            axes.set_xscale("log")
        share = found.rmse[-1] / found.moved[-1] if found.moved[-1] > 0 else math.nan
        title = f"After {steps[-1]} steps linearised by {format_percent(share)} beside the network"
        under = f"losses {found.loss[-1]:.3g} and {found.loss_linear[-1]:.3g} (linear), from {found.loss[0]:.3g}"
        axes.set(title=f"{title}\n{under}", xlabel="step", ylabel="RMS over examples and outputs")
        axes.legend()
        plain_log_ticks(axes)
    return axes


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _wide(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return len(known) > 0 and known.min() > 0 and known.max() > WIDE * known.min()


def _under(found: Line | Plane) -> str:
    """On how many examples, and with which statistics where the network keeps any."""
    statistics = f", {found.bn} statistics" if found.normalised else ""
    return f"{found.examples:,} examples{statistics}"
