"""The figures of eigenvalues, their density, the trace, and the gradient in the top eigenvectors; one Axes each."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from deepjax.analysis.curvature.operators import HessianTrace, MatrixSpec
from deepjax.analysis.curvature.spectrum import Density, Eigenvalues, GradientSubspace
from deepjax.analysis.plots import COLORS, canvas, format_number, format_percent


def draw_eigenvalues(found: Eigenvalues, ax: Any = None) -> Axes:
    """The eigenvalues by rank, with bars as long as their residuals."""
    places = np.arange(1, len(found.values) + 1)
    with canvas(ax, 5.2, 3.8) as axes:
        axes.axhline(0, color="0.5", linewidth=1)
        axes.vlines(places, 0, found.values, color=COLORS[0], linewidth=1.4)
        axes.errorbar(
            places,
            found.values,
            yerr=found.residuals,
            fmt="o",
            color=COLORS[0],
            ecolor=COLORS[1],
            capsize=4,
            ms=5,
        )
        worst = format_number(float(found.residuals.max()))
        first = f"$\\lambda_1$ = {format_number(float(found.values[0]))}"
        kinds = {
            "magnitude": "by magnitude",
            "largest": "from the largest",
            "smallest": "from the smallest",
        }
        axes.set_title(
            f"{_name(found.matrix)}: {first}\n{_under(found.matrix)}, errors at most {worst}"
        )
        axes.set(
            xlabel=f"eigenvalue, {kinds[found.which]}",
            ylabel="eigenvalue",
            xlim=(0.4, len(places) + 0.6),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(False, axis="x")
    return axes


def draw_density(found: Density, ax: Any = None) -> Axes:
    """The density down to a tenth of a lone eigenvalue's peak, and the extreme eigenvalues."""
    rows = found.rows(2001)
    x, y = (np.array([row[key] for row in rows]) for key in ("eigenvalue", "density"))
    lone = 1 / (found.matrix.parameters * found.sigma * math.sqrt(2 * math.pi))
    with canvas(ax, 6.4, 4.0) as axes:
        axes.set_yscale("log")
        axes.fill_between(
            x, lone / 10, np.maximum(y, lone / 10), color=COLORS[0], alpha=0.25, linewidth=0
        )
        axes.plot(x, np.maximum(y, lone / 10), color=COLORS[0], linewidth=1.2)
        axes.axhline(lone, color="0.5", linestyle="--", linewidth=1)
        axes.text(
            0.99,
            lone,
            "one eigenvalue",
            color="0.4",
            ha="right",
            va="bottom",
            transform=axes.get_yaxis_transform(),
        )
        axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.plot(
            [found.lambda_min, found.lambda_max],
            [lone / 10] * 2,
            "^",
            color=COLORS[1],
            ms=6,
            clip_on=False,
            zorder=4,
        )
        marks = f"$\\lambda_{{max}}$ = {format_number(found.lambda_max)}, $\\lambda_{{min}}$ = {format_number(found.lambda_min)}"
        ratio = (
            ""
            if math.isnan(found.outlier_ratio)
            else f", $\\lambda_1/\\lambda_{{{found.classes}}}$ = {found.outlier_ratio:.3g}"
        )
        axes.set_title(
            f"{_name(found.matrix)}: {marks}{ratio}\n{_under(found.matrix)}, {format_percent(found.negative)} below 0"
        )
        axes.set(
            xlabel="eigenvalue", ylabel="density", xlim=(x[0], x[-1]), ylim=(lone / 10, 3 * y.max())
        )
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
    return axes


def draw_trace(found: HessianTrace, ax: Any = None) -> Axes:
    """The single estimates, and the trace from all probes so far with its standard error."""
    rows = found.rows()
    probes, estimates, means, errors = (
        np.array([row[key] for row in rows]) for key in ("probe", "estimate", "trace", "error")
    )
    with canvas(ax, 5.2, 3.8) as axes:
        axes.plot(probes, estimates, ".", color="0.7", label="one probe")
        axes.plot(probes, means, color=COLORS[0], label="mean so far")
        axes.fill_between(
            probes[1:],
            (means - errors)[1:],
            (means + errors)[1:],
            color=COLORS[0],
            alpha=0.2,
            linewidth=0,
        )
        error = f" ± {format_number(found.error)}" if math.isfinite(found.error) else ""
        title = f"{_name(found.matrix)}: trace {format_number(found.trace)}{error}"
        axes.set_title(f"{title}\n{_under(found.matrix)}, {found.matrix.parameters:,} parameters")
        axes.set(xlabel="probes", ylabel="trace")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return axes


def draw_mass(found: GradientSubspace, ax: Any = None) -> Axes:
    """The share in the first 1, 2, ... eigenvectors, and that of a random direction."""
    places = np.arange(1, len(found.shares) + 1)
    with canvas(ax, 5.2, 3.8) as axes:
        axes.plot(places, found.shares, "o-", color=COLORS[0], ms=4, clip_on=False, zorder=3)
        axes.plot(places, places / found.matrix.parameters, "--", color="0.5", linewidth=1.2)
        axes.text(
            places[-1],
            found.chance + 0.015,
            "a random direction",
            color="0.4",
            ha="right",
            va="bottom",
        )
        top = f"the top {len(places)} of {found.matrix.parameters:,} directions"
        axes.set_title(
            f"{format_percent(found.share)} of the squared gradient in {top}\n{_name(found.matrix)}, {_under(found.matrix)}"
        )
        axes.set(
            xlabel="eigenvectors, from the largest eigenvalue",
            ylabel="share of the squared gradient",
            ylim=(0, 1),
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def _name(matrix: MatrixSpec) -> str:
    return matrix.name if len(matrix.name) <= 48 else f"{matrix.name[:45]}..."


def _under(matrix: MatrixSpec) -> str:
    """On how many examples, and with which statistics where the network keeps any."""
    statistics = f", {matrix.bn} statistics" if matrix.normalised else ""
    return f"{matrix.examples:,} examples{statistics}"
