"""Histograms of activations and of their gradients, layer by layer, in one pass.

With bins of powers of two, as in Micikevicius et al., "Mixed precision training", 2018
(arXiv:1710.03740), figure 3.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.mode import TRAIN, Mode
from deepjax.analysis.core.params import real_pairs, widened
from deepjax.analysis.core.result import Result
from deepjax.analysis.network.batch import Batches, mean_over_batches
from deepjax.analysis.network.module import Batch, Loss, Model, cross_entropy
from deepjax.analysis.network.taps import (
    Measure,
    Site,
    labels,
    loss_grads_and_measurements,
    require_layers,
    select_sites,
    sites,
)
from deepjax.analysis.network.task import make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require

TOP = 16  # the highest bin ends at 2^16, just above the largest float16, 65504
MAX_BINS = 140  # the lowest bin then is at the smallest normal float32
FLOAT16_TINY = -24  # 2^-24 is the smallest float16 above 0
MAX_NAMES = 28  # of layers below a figure


@dataclasses.dataclass(frozen=True, eq=False)
class BinCounts:
    """How many values are in each bin; counts of other batches and runs can be added.

    Bin i of a sign has 2^e <= |x| < 2^(e + 1) for e = 16 - bins + i; the first also has all smaller
    values but 0, the last all greater ones.
    """

    negative: np.ndarray
    """(bins,), by |x| ascending."""
    zeros: int
    positive: np.ndarray
    """(bins,)"""
    non_finite: int

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.magnitudes.sum()) + self.zeros + self.non_finite

    @property
    def magnitudes(self) -> np.ndarray:
        """(bins,): counts of both signs."""
        return self.negative + self.positive

    @property
    def exponents(self) -> np.ndarray:
        """(bins,): e of each bin."""
        return np.arange(TOP - len(self.positive), TOP)

    @property
    def median(self) -> float:
        """Median of |x| over the values that are not 0, interpolated in its bin; NaN without any.

        At most a factor of sqrt(2) from the median for values that are spread evenly in log |x|.
        """
        sums = np.cumsum(self.magnitudes)
        if not sums[-1]:
            return math.nan
        at = int(np.searchsorted(sums, sums[-1] / 2))
        before = sums[at] - self.magnitudes[at]
        part = (sums[-1] / 2 - before) / self.magnitudes[at]
        return 2.0 ** (float(self.exponents[at]) + float(part))

    def below(self, exponent: int) -> float:
        """Fraction of the values with 0 < |x| < 2^exponent; NaN where the bins do not show it."""
        if not self.total or not TOP - len(self.positive) < exponent <= TOP:
            return math.nan
        return float(self.magnitudes[self.exponents < exponent].sum()) / self.total


@dataclasses.dataclass(frozen=True, eq=False)
class LayerHistogram:
    """One output of a layer, over all its runs."""

    layer: str
    """Path of the module; "" is the network."""
    output: str
    """Which output, as in `LayerRow`."""
    shape: tuple[int, ...]
    runs: int
    activations: BinCounts
    gradients: BinCounts
    """Of the loss, with respect to the output."""

    @property
    def label(self) -> str:
        """Layer and output for display; unique in a result."""
        return (self.layer or ("" if self.output else "(network)")) + self.output


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Histograms(Result):
    """Histograms of the outputs of layers and of the gradients there, in forward order."""

    loss: float
    layers: tuple[LayerHistogram, ...]
    not_measured: tuple[str, ...]
    """Outputs that the backward pass does not reach: they do not influence the loss, or are inside
    nn.custom_vjp."""
    mode: Mode
    mode_text: str
    data_text: str

    def summary(self) -> dict[str, Any]:
        """Fractions of all values of all layers."""
        activations, gradients = (
            _added([getattr(each, name) for each in self.layers])
            for name in ("activations", "gradients")
        )
        bad = activations.non_finite + gradients.non_finite
        return {
            "zero activations": activations.zeros / max(activations.total, 1),
            "zero gradients": gradients.zeros / max(gradients.total, 1),
            "gradients below float16": gradients.below(FLOAT16_TINY),
            "non-finite": bad / max(activations.total + gradients.total, 1),
            "layers": len(self.layers),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per layer output."""
        return [_row(each) for each in self.layers]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Heat maps of activations and gradients: the fraction of a layer's values in each bin.

        Returns their matplotlib Figure; with `ax` the map of the gradients alone, and its Axes.
        """
        import matplotlib.pyplot as plt

        from deepjax.analysis.plots import STYLE, canvas

        if ax is not None:
            with canvas(ax, 6.4, 4.2, title) as axes:
                _heat_map(axes, self, "gradients")
            return axes
        with plt.style.context(STYLE):
            figure, panels = plt.subplots(1, 2, figsize=(11, 4.6))
            for axes, which in zip(panels, ("activations", "gradients"), strict=True):
                _heat_map(axes, self, which)
            if title is not None:
                figure.suptitle(title)
        return figure


@instrument
def histograms(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = TRAIN,
    layers: Layers = None,
    key: Array | None = None,
    bins: int = 64,
) -> Histograms:
    """Histograms of each layer's output, and of the loss's gradient with respect to it.

    batch: one, or several, over which the counts are added; the gradients are those of the mean
    loss. layers: paths or patterns, default all. bins: for each sign, a power of two of |x| each,
    from 2^(16 - bins) = 4e-15 to 2^16; zeros and non-finite values are counted too. The bins do not
    depend on the data: so no second pass is needed, and counts of batches, runs of a scanned block
    and steps of training add up. Complex numbers count as pairs of real ones.
    Works under `nn.remat`, `nn.jit`, `nn.scan` and `nn.vmap`. Compiled once for each network, loss
    and shape: pass the same `loss` function. Counts of a bin are exact below 2^23, and to 7 digits
    above.
    Raises InputError for an unknown layer, inputs that do not fit, and a function, which has no
    layers. Cost: one forward and one backward pass, and a count over each output and its gradient.
    """
    fits = isinstance(bins, int) and not isinstance(bins, bool) and 2 <= bins <= MAX_BINS
    require(fits, "bins", bins, f"2 to {MAX_BINS} powers of two")
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    require_layers(task.network, "histograms")
    known = sites(task.network, task.variables, task.data.first, loss, mode.train)
    at = select_sites(known, layers)
    value, found = _measured(
        task.variables,
        task.data.stacked,
        task.key,
        model=task.network,
        loss=loss,
        train=mode.train,
        at=at,
        bins=bins,
    )
    text = task.mode_text  # while the devices compute
    rows = [
        _layer(site, label, *counts)
        for site, label, counts in zip(at, labels(at), jax.device_get(found), strict=True)
    ]
    reached = tuple(row for row in rows if row.runs)
    missing = tuple(row.label for row in rows if not row.runs)
    return Histograms(float(value), reached, missing, mode, text, task.data_text)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "at", "bins"))
@canonicalize_conv_layouts
def _measured(
    variables: Any,
    stacked: Any,
    key: Array,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    at: tuple[Site, ...],
    bins: int,
) -> Any:
    """(mean loss, by site ((runs, counts of the output), counts of the gradient))."""
    batches = jax.tree.leaves(stacked)[0].shape[0]

    def of_output(arguments: tuple[Any, ...], output: Array) -> tuple[Array, Array]:
        return jnp.ones((), jnp.float32), _counts(output, bins)

    def of_cotangent(cotangent: Array) -> Array:
        return _counts(cotangent, bins, 1 / batches)

    measure = Measure(of_output, of_cotangent)

    def one(key: Array, batch: Batch) -> Any:
        value, _, found = loss_grads_and_measurements(
            model, variables, batch, loss, train, key, at, measure
        )
        return value, found

    value, found = mean_over_batches(one, stacked, key)
    return value, jax.tree.map(lambda leaf: jnp.round(leaf * batches), found)


def _counts(values: Array, bins: int, scale: float = 1.0) -> Array:
    """(2 bins + 2,): by value ascending, zero in the middle; then what is not finite."""
    x = jnp.ravel(widened(real_pairs(values)))
    x = x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)
    # frexp is exact: x = m 2^e with 1/2 <= |m| < 1.
    at = jnp.clip(jnp.frexp(x)[1].astype(jnp.int32) - 1 - (TOP - bins), 0, bins - 1)
    signed = jnp.where(x < 0, bins - 1 - at, jnp.where(x > 0, bins + 1 + at, bins))
    index = jnp.where(jnp.isfinite(x), signed, 2 * bins + 1)
    # A float, since it travels as a gradient.
    return jnp.bincount(index, length=2 * bins + 2).astype(jnp.float32)


def _layer(site: Site, label: str, output: Any, gradient: Any) -> LayerHistogram:
    runs, counts = output
    return LayerHistogram(
        site.layer, label, site.shape, int(runs), _bin_counts(counts), _bin_counts(gradient)
    )


def _bin_counts(counts: Any) -> BinCounts:
    whole = np.asarray(counts, np.int64)
    bins = len(whole) // 2 - 1
    return BinCounts(whole[:bins][::-1], int(whole[bins]), whole[bins + 1 : -1], int(whole[-1]))


def _added(counts: Sequence[BinCounts]) -> BinCounts:
    if not counts:
        empty = np.zeros(2, np.int64)
        return BinCounts(empty, 0, empty, 0)
    add: Callable[[Any, Any], Any] = lambda a, b: a + b  # noqa: E731
    parts = ([getattr(each, name) for each in counts] for name in _PARTS)
    return BinCounts(*(functools.reduce(add, part) for part in parts))


_PARTS = tuple(field.name for field in dataclasses.fields(BinCounts))


def _row(each: LayerHistogram) -> dict[str, Any]:
    activations, gradients = each.activations, each.gradients
    return {
        "layer": each.label,
        "shape": each.shape,
        "runs": each.runs,
        "median |x|": activations.median,
        "zeros": activations.zeros / activations.total,
        "negative": float(activations.negative.sum()) / activations.total,
        "median |gradient|": gradients.median,
        "zero gradients": gradients.zeros / gradients.total,
        "below float16": gradients.below(FLOAT16_TINY),
        "non-finite": activations.non_finite + gradients.non_finite,
    }


def _heat_map(ax: Any, found: Histograms, which: str) -> None:
    from matplotlib.ticker import FuncFormatter

    from deepjax.analysis.plots import COLORS, layer_ticks

    counts = [getattr(each, which) for each in found.layers]
    shares = np.stack([each.magnitudes / max(each.total, 1) for each in counts], axis=1)
    shown = np.flatnonzero(shares.max(axis=1) > 2e-3)
    low, high = (shown[0], shown[-1] + 1) if len(shown) else (0, len(shares))
    exponents = counts[0].exponents
    image = ax.imshow(
        100 * shares[low:high],
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=0,
        extent=(-0.5, len(counts) - 0.5, float(exponents[low]), float(exponents[high - 1]) + 1),
        interpolation="nearest",
    )
    ax.figure.colorbar(image, ax=ax, label="values (%)")
    medians = np.array([each.median for each in counts])
    ax.plot(np.log2(medians), ".", color=COLORS[5], ms=4)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$2^{{{value:g}}}$"))
    layer_ticks(ax, [each.label for each in found.layers], MAX_NAMES)
    everything = _added(counts)
    zeros = 100 * everything.zeros / max(everything.total, 1)
    noun = {"activations": "Activations", "gradients": "Gradients at the outputs"}[which]
    ax.set_title(f"{noun}: {zeros:.0f} % are 0\n{found.data_text}")
    ax.set(ylabel={"activations": "|x|", "gradients": "|gradient|"}[which])
    ax.grid(False)
