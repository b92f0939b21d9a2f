"""The figures of per-example gradients, the noise scale, loss shares and shattering; one Axes each."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from deepjax.analysis.gradients.auxiliary_losses import MAIN, LossContributions
from deepjax.analysis.gradients.per_example import NoiseScale, PerExample
from deepjax.analysis.gradients.shattering import GradientLine, Shattering
from deepjax.analysis.plots import COLORS, canvas, layer_ticks


def draw_examples(found: PerExample, ax: Any = None) -> Axes:
    """Norms of the mean gradient and of the single ones, and the signal-to-noise ratio, by layer on one logarithmic axis."""
    rows = found.layers
    each = "an example" if found.bn == "running" else f"a ghost batch of {found.bn}"
    lines = {
        f"norm of {each}'s gradient (mean)": [row.example_norm for row in rows],
        "norm of the mean gradient": [row.mean_norm for row in rows],
        "signal to noise (GSNR)": [row.gsnr for row in rows],
    }
    with canvas(ax, 6.4, 4.4) as axes:
        axes.set_yscale("log")
        for (label, values), color, style in zip(
            lines.items(), COLORS, ("s--", "o-", "^:"), strict=False
        ):
            axes.plot(
                np.where(np.array(values) > 0, values, np.nan),
                style,
                color=color,
                ms=3.5,
                label=label,
            )
        known = [row.gsnr for row in rows if not math.isnan(row.gsnr)]
        middle = float(np.median(known)) if known else math.nan
        signal = (
            f"median signal to noise of a layer {middle:.2g}"
            if middle > 0
            else "no signal above the noise in most layers"
        )
        axes.set(
            title=f"{found.count} gradients: {signal if known else 'too few for a signal'}",
            ylabel="L2 norm, ratio",
        )
        layer_ticks(axes, [row.layer for row in rows])
        axes.legend()
    return axes


def draw_noise(found: NoiseScale, ax: Any = None) -> Axes:
    """The scale from all batches so far, with the last one's standard error."""
    rows = found.rows()
    with canvas(ax, 5.2, 3.8) as axes:
        axes.plot(
            [row["batch"] for row in rows],
            [row["scale"] for row in rows],
            "o-",
            color=COLORS[0],
            ms=4,
        )
        error = ""
        if math.isfinite(found.scale) and math.isfinite(found.error):
            axes.axhspan(
                found.scale - found.error,
                found.scale + found.error,
                color=COLORS[0],
                alpha=0.15,
                linewidth=0,
            )
            error = f" ± {found.error:.2g}"
        value = (
            f"{found.scale:.3g}{error} examples"
            if math.isfinite(found.scale)
            else "not measurable: no signal above the noise"
        )
        axes.set(
            title=f"Noise scale: {value}",
            xlabel=f"batches of {found.big} averaged",
            ylabel="tr($\\Sigma$) / |G|$^2$",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def draw_shares(found: LossContributions, ax: Any = None) -> Axes:
    """Each loss's share of the layer's gradient, stacked, for the layers that more than one loss reaches."""
    layers = list(found.shared)
    with canvas(ax, 6.4, 4.2) as axes:
        bottom = np.zeros(len(layers))
        for loss, color in zip(
            found.losses, [COLORS[0], *COLORS[4:0:-1], *COLORS[5:]], strict=False
        ):
            shares = {row.layer: row.share for row in found.layers if row.loss == loss}
            heights = np.array([shares[layer] for layer in layers])
            label = "main loss" if loss == MAIN else f"{loss}, weight {found.weights[loss]:g}"
            axes.bar(
                range(len(layers)), heights, bottom=bottom, color=color, width=0.85, label=label
            )
            bottom += heights
        main = [row.share for row in found.layers if row.loss == MAIN and row.layer in found.shared]
        least = (
            f"from {100 * (1 - max(main)):.0f} to {100 * (1 - min(main)):.0f} %" if main else "0 %"
        )
        axes.set(
            title=f"The heads' losses are {least} of the gradient they share",
            ylim=(0, 1),
            ylabel="share of the norm",
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        layer_ticks(axes, layers)
        axes.legend(loc="lower left", frameon=True, framealpha=0.9)
    return axes


def draw_shattering(found: Shattering, ax: Any = None) -> Axes:
    """How often each cosine occurs among the pairs of examples."""
    pairs = found.cosines[np.triu_indices(len(found.cosines), 1)]
    pairs = pairs[~np.isnan(pairs)]
    with canvas(ax, 5.2, 3.8) as axes:
        axes.hist(pairs, bins=np.linspace(-1, 1, 41).tolist(), color=COLORS[0], alpha=0.8)
        axes.axvline(found.cosine, color=COLORS[1])
        axes.annotate(
            f"mean {found.cosine:.3f}", (found.cosine, 0.97), (5, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=COLORS[1], va="top",
        )  # fmt: skip
        dead = f", {found.dead} of them without a gradient" if found.dead else ""
        axes.set(
            title=f"Gradients at {found.examples} inputs{dead}",
            xlabel="cosine of two inputs' gradients",
            ylabel="pairs",
        )
    return axes


def draw_line(found: GradientLine, ax: Any = None) -> Axes:
    """The autocorrelation and the band in which white noise stays."""
    rows = found.rows()
    with canvas(ax, 5.2, 3.8) as axes:
        axes.plot(
            [row["lag"] for row in rows], [row["autocorrelation"] for row in rows], color=COLORS[0]
        )
        axes.axhspan(-found.white, found.white, color="0.5", alpha=0.2, linewidth=0)
        axes.text(
            len(rows) - 1, found.white, "white noise (95 %) ", color="0.4", ha="right", va="bottom"
        )
        outside = np.abs(found.autocorrelation[1:]) > found.white
        length = int(np.argmin(outside)) if not outside.all() else len(outside)
        alike = f"Gradients stay alike for {length} of {len(found.gradient)} points"
        constant = np.isnan(found.autocorrelation).all()
        axes.set(
            title="The gradient is the same at all points" if constant else alike,
            xlabel="lag (points)",
        )
        axes.set(
            ylabel="autocorrelation",
            ylim=(min(-0.4, float(np.nanmin(found.autocorrelation, initial=0))), 1.05),
        )
    return axes
