"""The result of `trace`: a row of statistics per layer, as a table and as a figure."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deepjax.analysis.core.mode import Mode
from deepjax.analysis.core.result import Result, ends, shortened

MAX_NAMES = 24  # of layers below the figure


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One output of a layer, or the parameters of a layer whose output is not measured.

    For a layer that runs several times (shared, or inside a scan) everything but the norms is a
    mean over its runs; calls with other shapes have a row of their own. Complex numbers count as
    pairs of real ones, except in `max_abs` and `dead_fraction`, which use absolute values.
    """

    layer: str
    """Path of the module, as in the parameters; "" is the network."""
    output: str
    """Which output: "" for the single array that `__call__` returns, else such as "[0]" or
    ".encode()". Where several outputs have the same path, also what distinguishes them (the
    module's class, shapes)."""
    shape: tuple[int, ...]
    """Shape of the output."""
    runs: int
    """Number of runs; 0 if the output does not influence the loss: its statistics are then NaN, and
    `LayerReport.not_measured` has the reason."""
    mean: float
    std: float
    """Mean and standard deviation of the output over all its entries."""
    max_abs: float
    """Maximum of the output's absolute values."""
    dead_fraction: float
    """Fraction of channels (last axis) that are nowhere above 0 in the batch, so that a ReLU is
    dead."""
    gradient_norm: float
    """L2 norm of the loss's gradient with respect to the output of all examples; NaN if not
    measured."""
    weight_norm: float | None
    parameter_gradient_norm: float | None
    """L2 norms of the layer's own parameters and of the loss's gradient with respect to them; None
    if it has no parameters. Of several rows of one path the last has them: the rows add up to all
    parameters."""
    update_ratio: float | None
    """||update|| / ||parameters||; None without `updates`."""
    shortcut_norm: float | None
    branch_norm: float | None
    branch_ratio: float | None
    cosine: float | None
    """For a sum of (shortcut, branch): their L2 norms, ||branch|| / ||shortcut||, and their
    cosine."""

    @property
    def label(self) -> str:
        """Layer and output for display; unique in a report."""
        return (self.layer or ("" if self.output else "(network)")) + self.output


@dataclasses.dataclass(frozen=True, repr=False)
class LayerReport(Result):
    """Statistics of every layer, in forward order, and the loss of the batch."""

    loss: float
    mode: Mode
    mode_text: str
    """The switch that selected the mode, or that the network has none."""
    layers: tuple[LayerRow, ...]
    not_measured: tuple[str, ...] = ()
    """Labels of the rows whose output was not measured, each with the reason."""

    def summary(self) -> dict[str, Any]:
        """Loss, norm of the gradient, its range over the layers, and dead channels."""
        norms = [row.gradient_norm for row in self.layers if row.layer and row.gradient_norm > 0]
        known = [row.parameter_gradient_norm or 0.0 for row in self.layers]
        dead = [row.dead_fraction for row in self.layers if row.layer and row.runs]
        return {
            "loss": self.loss,
            "gradient norm": math.hypot(*known),
            "first / last layer's": norms[0] / norms[-1] if norms else math.nan,
            "most dead": max(dead, default=math.nan),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per row."""
        return [dataclasses.asdict(row) for row in self.layers]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Four panels against depth: outputs, dead channels, gradients, residual branches.

        Returns their matplotlib Figure; with `ax` the panel of the gradients, and its Axes.
        """
        import matplotlib.pyplot as plt

        from deepjax.analysis.plots import STYLE, canvas, layer_ticks

        rows = [row for row in self.layers if row.layer and row.runs]
        if ax is not None:
            with canvas(ax, 6.4, 4.2, title) as axes:
                _plot_gradients(axes, rows)
                layer_ticks(axes, [row.label for row in rows], MAX_NAMES)
            return axes
        with plt.style.context(STYLE):
            figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
            _plot_outputs(axes[0, 0], rows)
            _plot_gradients(axes[0, 1], rows)
            _plot_dead(axes[1, 0], rows, [row.shape for row in self.layers if not row.layer])
            _plot_branches(axes[1, 1], rows)
            for each in axes[1]:
                layer_ticks(each, [row.label for row in rows], MAX_NAMES)
            if title is not None:
                figure.suptitle(title)
        return figure

    def __str__(self) -> str:
        """A table of every layer, without the columns that none fills."""
        return self._table(self.layers)

    def __repr__(self) -> str:
        """The same of the first and the last layers where there are many."""
        return self._table(ends(self.layers))

    def _table(self, rows: Sequence[LayerRow]) -> str:
        columns = [[name, *cells] for name, cells in _columns(rows).items() if any(cells)]
        widths = [max(map(len, column)) for column in columns]
        head, *lines = [
            "  ".join(map(_align, cells, widths, range(len(cells))))
            for cells in zip(*columns, strict=True)
        ]
        if len(rows) < len(self.layers):
            lines = shortened(lines, len(self.layers), f"... {len(self.layers) - len(rows)} more")
        notes = [f"not measured: {each}" for each in self.not_measured]
        return "\n".join([f"loss {self.loss:.4f}, {self.mode_text}", head, *lines, *notes])


def _columns(rows: Sequence[LayerRow]) -> dict[str, list[str]]:
    """The cells of the table by column."""

    def numbers(name: str) -> list[str]:
        values = [getattr(row, name) for row in rows]
        return [
            "" if value is None else "-" if math.isnan(value) else f"{value:.3g}"
            for value in values
        ]

    return {
        "layer": [row.label for row in rows],
        "shape": ["x".join(map(str, row.shape[1:])) for row in rows],
        "runs": [str(row.runs) if row.runs != 1 else "" for row in rows],
        "mean": numbers("mean"),
        "std": numbers("std"),
        "dead": [f"{100 * row.dead_fraction:.0f} %" if row.runs else "-" for row in rows],
        "gradient": numbers("gradient_norm"),
        "weights": numbers("weight_norm"),
        "weight gradient": numbers("parameter_gradient_norm"),
        "update ratio": numbers("update_ratio"),
        "branch ratio": numbers("branch_ratio"),
    }


def _align(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _plot_outputs(ax: Any, rows: Sequence[LayerRow]) -> None:
    from deepjax.analysis.plots import COLORS

    x, mean, std = np.arange(len(rows)), _values(rows, "mean"), _values(rows, "std")
    ax.plot(x, mean, color=COLORS[0], label="mean")
    ax.fill_between(
        x, mean - std, mean + std, color=COLORS[0], alpha=0.2, linewidth=0, label="± std"
    )
    ax.set(title="Output of each layer", ylabel="output")
    ax.legend()


def _plot_gradients(ax: Any, rows: Sequence[LayerRow]) -> None:
    from deepjax.analysis.plots import COLORS

    ax.set_yscale("log")
    norms = _values(rows, "gradient_norm")
    positive = norms[norms > 0]
    ax.plot(
        np.arange(len(rows)),
        np.where(norms > 0, norms, np.nan),
        color=COLORS[0],
        label="at the output",
    )
    x, parameter_norms = _known(rows, lambda row: row.parameter_gradient_norm or None)
    ax.plot(x, parameter_norms, "o", ms=3, color=COLORS[1], label="at the parameters")
    x, ratios = _known(rows, lambda row: row.update_ratio)
    if len(ratios):
        ax.plot(x, ratios, "x", ms=4, color=COLORS[2], label="update / weight")
    ratio = positive[0] / positive[-1] if len(positive) else np.nan
    times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"
    title = f"The first layer's gradient is {times} times the last one's"
    ax.set(title=title, ylabel="L2 norm of the gradient")
    ax.legend()


def _plot_dead(ax: Any, rows: Sequence[LayerRow], logit_shapes: Sequence[tuple[int, ...]]) -> None:
    """Outputs with the shape of the network's own output count as 0: no ReLU follows on logits."""
    from deepjax.analysis.plots import COLORS

    fractions = [0.0 if row.shape in logit_shapes else row.dead_fraction for row in rows]
    dead = 100 * np.array(fractions, float)
    ax.bar(np.arange(len(rows)), dead, color=COLORS[6], width=0.8)
    title = (
        f"Dead channels: up to {dead.max():.0f} % of a layer"
        if dead.any()
        else "No channel is dead"
    )
    ax.set(title=title, ylabel="channels nowhere above 0 (%)", ylim=(0, 100))


def _plot_branches(ax: Any, rows: Sequence[LayerRow]) -> None:
    from deepjax.analysis.plots import COLORS

    x, ratios = _known(rows, lambda row: row.branch_ratio)
    if not len(ratios):
        ax.set(title="No residual sums")
        ax.text(
            0.5, 0.5, "no module adds a (shortcut, branch)", ha="center", transform=ax.transAxes
        )
        return
    ax.plot(x, ratios, "o-", ms=4, color=COLORS[2], label="||branch|| / ||shortcut||")
    x, cosines = _known(rows, lambda row: row.cosine)
    ax.plot(x, cosines, "s--", ms=3, color=COLORS[3], label="cosine between them")
    ax.axhline(0, color="0.6", linewidth=0.8)
    title = f"Residual branches are {np.median(ratios):.2g} of their shortcuts (median)"
    ax.set(title=title, ylabel="ratio, cosine")
    ax.legend()


def _values(rows: Sequence[LayerRow], name: str) -> np.ndarray:
    return np.array([getattr(row, name) for row in rows], float)


def _known(
    rows: Sequence[LayerRow], value_of: Callable[[LayerRow], float | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of the rows that have one."""
    values = [value_of(row) for row in rows]
    numbers = np.array([np.nan if value is None else value for value in values], float)
    indices = np.flatnonzero(~np.isnan(numbers))
    return indices, numbers[indices]
