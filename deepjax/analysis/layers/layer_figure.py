"""The figure of a layer report: four panels against depth."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepjax.analysis.layers.report import LayerReport, LayerRow
from deepjax.analysis.plots import COLORS, STYLE

MOST_NAMES = 24


def draw(report: LayerReport) -> Figure:
    """Outputs, dead channels, gradients and residual branches of every layer, from input to output."""
    rows = [row for row in report.layers if row.layer and row.runs]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
        _outputs(axes[0, 0], rows)
        _gradients(axes[0, 1], rows)
        _dead(axes[1, 0], rows, [row.shape for row in report.layers if not row.layer])
        _branches(axes[1, 1], rows)
        for ax in axes[1]:
            _name_layers(ax, [row.label for row in rows])
    return figure


def _outputs(ax: Axes, rows: Sequence[LayerRow]) -> None:
    mean, deviation = _column(rows, lambda row: row.mean), _column(rows, lambda row: row.std)
    places = np.arange(len(rows))
    ax.plot(places, mean, color=COLORS[0], label="mean")
    ax.fill_between(
        places,
        mean - deviation,
        mean + deviation,
        color=COLORS[0],
        alpha=0.2,
        linewidth=0,
        label="± deviation",
    )
    ax.set(title="What each layer puts out", ylabel="output")
    ax.legend()


def _gradients(ax: Axes, rows: Sequence[LayerRow]) -> None:
    places = np.arange(len(rows))
    ax.set_yscale("log")
    norms = _column(rows, lambda row: row.gradient_norm)
    ax.plot(places, np.where(norms > 0, norms, np.nan), color=COLORS[0], label="at the output")
    places_of_parameters, at_parameters = _known(
        rows, lambda row: row.parameter_gradient_norm or None
    )
    ax.plot(
        places_of_parameters, at_parameters, "o", ms=3, color=COLORS[1], label="at the parameters"
    )
    places_of_updates, ratios = _known(rows, lambda row: row.update_ratio)
    if len(ratios):
        ax.plot(places_of_updates, ratios, "x", ms=4, color=COLORS[2], label="update / weight")
    first, last = (norms[norms > 0][[0, -1]]) if (norms > 0).any() else (np.nan, np.nan)
    ratio = first / last
    times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"
    ax.set(
        title=f"The first layer's gradient is {times} times the last one's",
        ylabel="L2 norm of the gradient",
    )
    ax.legend()


def _dead(ax: Axes, rows: Sequence[LayerRow], logits: Sequence[tuple[int, ...]]) -> None:
    """What has the shape of the network's own output is left out: no ReLU follows on logits."""
    dead = 100 * _column(rows, lambda row: 0.0 if row.shape in logits else row.dead_fraction)
    ax.bar(np.arange(len(rows)), dead, color=COLORS[6], width=0.8)
    ax.set(
        title=f"Dead channels: up to {dead.max():.0f} % of a layer"
        if dead.any()
        else "No channel is dead",
        ylabel="channels nowhere above 0 (%)",
        ylim=(0, 100),
    )


def _branches(ax: Axes, rows: Sequence[LayerRow]) -> None:
    places, ratios = _known(rows, lambda row: row.branch_ratio)
    if not len(ratios):
        ax.set(title="No residual sums")
        ax.text(
            0.5, 0.5, "no module adds a (shortcut, branch)", ha="center", transform=ax.transAxes
        )
        return
    ax.plot(places, ratios, "o-", ms=4, color=COLORS[2], label="||branch|| / ||shortcut||")
    ax.plot(
        *_known(rows, lambda row: row.cosine),
        "s--",
        ms=3,
        color=COLORS[3],
        label="cosine between them",
    )
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(
        title=f"Residual branches are {np.median(ratios):.2g} of their shortcuts (median)",
        ylabel="ratio, cosine",
    )
    ax.legend()


def _name_layers(ax: Axes, names: Sequence[str]) -> None:
    every = max(1, -(-len(names) // MOST_NAMES))
    ax.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=7)


def _column(rows: Sequence[LayerRow], of: Callable[[LayerRow], Any]) -> np.ndarray:
    return np.array([of(row) for row in rows], float)


def _known(
    rows: Sequence[LayerRow], of: Callable[[LayerRow], float | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of the rows that have one."""
    values = np.array([np.nan if (value := of(row)) is None else value for row in rows], float)
    places = np.flatnonzero(~np.isnan(values))
    return places, values[places]
