"""Primitives of all figures: style, axes, ticks, labels, curves over seeds."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLE = str(Path(__file__).with_name("deepjax.mplstyle"))
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAX_LAYER_NAMES = 28  # on an axis; of more layers every second, third ... is named


@contextlib.contextmanager
def canvas(ax: Any, width: float, height: float, title: str | None = None) -> Iterator[Axes]:
    """Context: the Axes to draw on, new if none is given, in the common style.

    title: replaces the one that is set inside.
    """
    with plt.style.context(STYLE):
        axes = plt.subplots(figsize=(width, height))[1] if ax is None else ax
        yield axes
        if title is not None:
            axes.set_title(title)


def layer_ticks(ax: Axes, names: Sequence[str], max_names: int = MAX_LAYER_NAMES) -> None:
    """Write layer names along the horizontal axis, at most `max_names` of them."""
    every = max(1, -(-len(names) // max_names))
    labels = [name or "(network)" for name in names[::every]]
    ax.set_xticks(range(0, len(names), every), labels, rotation=90, fontsize=7)


def plain_log_ticks(ax: Axes) -> None:
    """Plain numbers on a logarithmic axis of less than two decades, with few powers of ten."""
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def label_line_ends(ax: Axes, ends: dict[str, tuple[float, str]], last: float) -> None:
    """Write each line's name to the right of its end (value, color), moved up to avoid overlap.

    last: the x of the ends. The vertical axis is logarithmic.
    """
    low, high = np.log(ax.get_ylim())
    previous = -np.inf
    for label, (value, color) in sorted(ends.items(), key=lambda item: item[1][0]):
        previous = max(np.log(value), previous + 0.06 * (high - low))
        options = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        ax.annotate(label, (last, np.exp(previous)), (8, 0), color=color, **options)


def format_number(value: float) -> str:
    """A number with three digits; powers of ten in LaTeX."""
    digits, _, power = f"{value:.3g}".partition("e")
    return f"${digits} \\times 10^{{{int(power)}}}$" if power else digits


def format_percent(fraction: float) -> str:
    """A fraction in per cent with three digits."""
    return "an unknown part" if math.isnan(fraction) else f"{100 * fraction:.3g} %"


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line over several seeds, drawn as their mean with a band from minimum to maximum.

    y has one row per seed.
    """

    label: str
    x: Sequence[float]
    y: Sequence[Sequence[float]]
    color: str
    line: str = "-"


def draw_curve(ax: Axes, curve: Curve) -> None:
    """Draw the mean over seeds and the band between the extreme seeds.

    On a logarithmic axis the mean is geometric.
    """
    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    middle = np.exp(np.log(np.maximum(y, 1e-30)).mean(0)) if ax.get_yscale() == "log" else y.mean(0)
    ax.plot(x, middle, curve.line, color=curve.color, label=curve.label)
    if len(y) > 1:
        ax.fill_between(x, y.min(0), y.max(0), color=curve.color, alpha=0.15, linewidth=0)


def error_curves(panels: Sequence[tuple[str, Sequence[Curve]]], x_label: str) -> Figure:
    """Error in per cent against training, one panel per kind of network (He et al. 2015, Fig. 6).

    panels: (title, curves); in that figure training error is dashed and test error solid.
    """
    with plt.style.context(STYLE):
        figure, axes = _panels(len(panels))
        for ax, (title, curves) in zip(axes[0], panels, strict=True):
            for curve in curves:
                draw_curve(ax, curve)
            ax.set(title=title, xlabel=x_label, ylim=(0, 100), xlim=(0, None))
        axes[0, 0].set_ylabel("error (%)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def depth_profile(panels: Sequence[tuple[str, Sequence[Curve]]], y_label: str) -> Figure:
    """A quantity by layer on a logarithmic axis, one panel per moment of training.

    x is the layer's relative position, 0 to 1.
    """
    with plt.style.context(STYLE):
        figure, axes = _panels(len(panels))
        for ax, (title, curves) in zip(axes[0], panels, strict=True):
            ax.set_yscale("log")
            for curve in curves:
                draw_curve(ax, curve)
            ax.set(title=title, xlabel="layer, from input (0) to output (1)", xlim=(0, 1))
        axes[0, 0].set_ylabel(y_label)
        axes[0, -1].legend(loc="best")
    return figure


def _panels(count: int) -> tuple[Figure, Any]:
    size = (5.2 * count, 4.0)
    return plt.subplots(1, count, figsize=size, sharey=True, squeeze=False)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.style.context(STYLE):
        figure.savefig(path)
    plt.close(figure)
    return path
