"""The figures of the effective field, the signal propagation, the mean field and the cost of a network; one Axes each."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from deepjax.analysis.costs.report import CostReport, scaled
from deepjax.analysis.plots import COLORS, canvas, label_line_ends, plain_log_ticks
from deepjax.analysis.propagation.signal import MeanField, Propagation
from deepjax.analysis.receptive_field.effective import EffectiveField
from deepjax.analysis.receptive_field.layers import LayerFields

MOST_BARS = 28


def draw_field(field: EffectiveField, ax: Any = None) -> Axes:
    """The map relative to its peak, a scale bar as long as the effective field, and the theoretical field's square."""
    with canvas(ax, 4.8, 4.4) as axes:
        rows, columns = field.map.shape
        image = axes.imshow(
            field.map / field.map.max(), cmap="magma", vmin=0, vmax=1, interpolation="nearest"
        )
        kind = "|gradient|" if field.power == "absolute" else "gradient²"
        axes.figure.colorbar(image, ax=axes, shrink=0.85, label=f"mean {kind} / its peak")
        _outline(axes, field)
        left, bottom = 0.04 * columns, 0.95 * rows
        axes.plot(
            [left, left + field.size],
            [bottom, bottom],
            color="white",
            linewidth=3,
            solid_capstyle="butt",
        )
        axes.text(
            left,
            bottom - 0.02 * rows,
            f"{field.size:.1f} pixels",
            color="white",
            va="bottom",
            fontsize=9,
        )
        axes.set(title=_field_title(field), xlabel="column (pixels)", ylabel="row (pixels)")
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        axes.grid(False)
    return axes


def _outline(ax: Axes, field: EffectiveField) -> None:
    """Around the map's centre of mass: where a unit's field lies depends on strides and padding, its size does not."""
    if field.theoretical is None:
        return
    shares = field.map / field.map.sum()
    row, column = (shares.sum(axis=1 - axis) @ np.arange(shares.shape[axis]) for axis in (0, 1))
    height, width = field.theoretical
    corner = (round(2 * (column - width / 2)) / 2, round(2 * (row - height / 2)) / 2)
    ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=COLORS[5], linewidth=1.4))
    ax.text(
        max(corner[0], 0) + 0.5,
        max(corner[1], 0) + 0.5,
        f"theoretical {height} x {width}",
        color=COLORS[5],
        fontsize=9,
        va="top",
    )


def _field_title(field: EffectiveField) -> str:
    of = "" if field.ratio is None else f", {100 * field.ratio:.0f} % of the theoretical"
    spread = f"$\\sigma$ = {np.mean(field.sigma):.2f} pixels, $R^2$ of a Gaussian {field.r2:.3f}"
    return f"Effective field: {field.size:.1f} pixels wide{of}\n{spread}"


def draw_layer_fields(found: LayerFields, ax: Any = None) -> Axes:
    """The larger side of each layer's field on a logarithmic axis, the image's side, and the stride where it grows."""
    rows = [row for row in found.layers if row.size is not None and max(row.size) > 0]
    sizes = [max(row.size or (0,)) for row in rows]
    side = max(found.input_shape[:2])
    with canvas(ax, 6.4, 4.2) as axes:
        axes.set_yscale("log", base=2)
        axes.plot(range(len(rows)), sizes, drawstyle="steps-mid", color=COLORS[0])
        axes.axhline(side, color="0.5", linestyle="--", linewidth=1)
        axes.text(len(rows) - 1, side, f"image, {side} pixels", color="0.4", ha="right", va="top")
        before = 1
        for place, row in enumerate(rows):
            stride = max(row.stride or (before,))
            if stride > before:
                axes.axvline(place, color="0.85", linewidth=1, zorder=0)
                axes.text(
                    place,
                    0.01,
                    f" stride {stride}",
                    color="0.4",
                    fontsize=8,
                    rotation=90,
                    transform=axes.get_xaxis_transform(),
                )
                before = stride
        beyond = next(
            (row.layer for row, size in zip(rows, sizes, strict=True) if size >= side), None
        )
        title = (
            "No layer's field covers the image"
            if beyond is None
            else f"Fields as large as the image from {beyond} on"
        )
        axes.set(
            title=title, xlabel="layer, from input to output", ylabel="receptive field (pixels)"
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return axes


def draw_propagation(found: Propagation, ax: Any = None) -> Axes:
    """Squared mean, variance and branch variance against the block, labelled where they end."""
    branch = [
        np.nan if block.branch_variance is None else block.branch_variance for block in found.blocks
    ]
    lines = {
        "channel variance": [block.variance for block in found.blocks],
        "squared channel mean": [block.squared_mean for block in found.blocks],
        "branch variance": branch,
    }
    with canvas(ax, 6.0, 4.0) as axes:
        axes.set_yscale("log")
        ends = {}
        for (label, values), color, style in zip(
            lines.items(), COLORS, ("o-", "s--", "^:"), strict=False
        ):
            places = [i for i, value in enumerate(values, 1) if value > 0]
            if places:
                axes.plot(places, [values[i - 1] for i in places], style, color=color, markersize=4)
                ends[label] = (values[places[-1] - 1], color)
        label_line_ends(axes, ends, len(found.blocks))
        first, last = found.blocks[0].variance, found.blocks[-1].variance
        over = f"Channel variance {first:.3g}, after {len(found.blocks)} blocks {last:.3g}"
        axes.set(title=over, xlabel="block", ylabel="mean over channels")
        plain_log_ticks(axes)
        axes.set_xticks(range(1, len(found.blocks) + 1, max(1, len(found.blocks) // 10)))
    return axes


def draw_mean_field(found: MeanField, ax: Any = None) -> Axes:
    """The correlation map, the diagonal and the fixed point."""
    before, after = np.array(found.correlations).T
    with canvas(ax, 4.6, 4.4) as axes:
        axes.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1)
        axes.plot(before, after, color=COLORS[0])
        axes.plot([found.c_star], [found.c_star], "o", color=COLORS[1], clip_on=False)
        label = f"fixed point c* = {found.c_star:.3f}\napproached over {_layers(found.xi_c)}"
        axes.text(0.97, 0.12, label, color=COLORS[1], ha="right", va="bottom")
        axes.text(0.97, 0.04, "dashed: no change", color="0.45", ha="right", va="bottom")
        phase = (
            "critical"
            if abs(found.chi_1 - 1) < 1e-6
            else "ordered"
            if found.chi_1 < 1
            else "chaotic"
        )
        settings = f"$\\sigma_w$ = {found.sigma_w:.3g}, $\\sigma_b$ = {found.sigma_b:.3g}"
        axes.set(
            title=f"{found.activation}, {settings}: {phase}, $\\chi_1$ = {found.chi_1:.3f}",
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
        )
        axes.set(xlabel="correlation between two inputs", ylabel="correlation one layer on")
    return axes


def _layers(scale: float) -> str:
    return f"{scale:.3g} layers" if math.isfinite(scale) else "infinitely many layers"


def draw_cost(report: CostReport, ax: Any = None) -> Axes:
    """Multiply-adds by layer from input to output; of a deep network the costliest."""
    rows = [row for row in report.layers if row.macs]
    shown = sorted(sorted(rows, key=lambda row: -row.macs)[:MOST_BARS], key=rows.index)
    with canvas(ax, 6.4, 1.4 + 0.24 * len(shown)) as axes:
        axes.barh(range(len(shown)), [row.macs for row in shown], color=COLORS[0], height=0.7)
        for i, row in enumerate(shown):
            text = f" {scaled(row.macs)}MAC, {row.intensity:.3g} FLOP/B"
            axes.text(row.macs, i, text, va="center", fontsize=8, color="0.3")
        axes.set_yticks(range(len(shown)), [row.layer or "(network)" for row in shown], fontsize=8)
        axes.set(
            title=_cost_title(report, len(shown), len(rows)),
            xlabel=f"multiply-adds, {report.inputs} (MAC)",
        )
        axes.set(
            ylim=(len(shown) - 0.4, -0.6),
            xlim=(0, 1.45 * max((row.macs for row in shown), default=1)),
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: scaled(value).strip()))
        axes.grid(False, axis="y")
    return axes


def _cost_title(report: CostReport, shown: int, layers: int) -> str:
    total = report.total
    if not total.macs:
        return f"{report.model}: no multiply-adds"
    rest = "" if shown == layers else f"; the {shown} costliest shown"
    macs = np.sort([row.macs for row in report.layers])[::-1]
    half = int(np.searchsorted(np.cumsum(macs), total.macs / 2)) + 1
    return (
        f"{report.model}: {scaled(total.macs)}MAC, half of them in {half} of {layers} layers{rest}"
    )
