"""The gradient noise scale.

McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training", 2018
(arXiv:1812.06162), appendix A.1: the simple noise scale.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from deepjax.analysis.core.batch import batch_size
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    cross_entropy,
    entry,
    has_batch_norm,
    validate_inputs,
)
from deepjax.analysis.core.params import as_real
from deepjax.analysis.gradients.per_example import (
    Statistics,
    batch_gradient,
    is_training,
    split_examples,
    sum_squares,
)
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """The simple noise scale tr(Sigma) / |G|^2: the batch size at which noise equals signal."""

    g2: float
    """Squared norm of the true gradient, unbiased estimate; below 0 if the batches are too few."""
    trace_sigma: float
    """Trace of the covariance of one example's gradient."""
    scale: float
    """trace_sigma / g2, in examples; NaN if g2 is not above 0."""
    standard_error: float
    """Of the scale, by the jackknife over batches; NaN for one batch."""
    small: int
    big: int
    """The two batch sizes at which the gradient's norm is measured."""
    bn: Statistics
    train: bool
    estimates: tuple[tuple[float, float], ...]
    """(g2, trace_sigma) of each batch."""

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per batch: its own estimates, and the scale from all batches so far."""
        sums = np.cumsum(self.estimates, axis=0)
        return [
            {"batch": i, "g2": g2, "trace_sigma": trace, "scale": _ratio(total[1], total[0])}
            for i, ((g2, trace), total) in enumerate(zip(self.estimates, sums, strict=True), 1)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The scale after each batch, with the last standard error; returns the Axes."""
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas

        rows, blue = self.rows(), COLORS[0]
        batches, scales = [row["batch"] for row in rows], [row["scale"] for row in rows]
        with canvas(ax, 5.2, 3.8) as axes:
            axes.plot(batches, scales, "o-", color=blue, ms=4)
            error = ""
            if math.isfinite(self.scale) and math.isfinite(self.standard_error):
                low, high = self.scale - self.standard_error, self.scale + self.standard_error
                axes.axhspan(low, high, color=blue, alpha=0.15, linewidth=0)
                error = f" ± {self.standard_error:.2g}"
            value = (
                f"{self.scale:.3g}{error} examples"
                if math.isfinite(self.scale)
                else "not measurable: no signal above the noise"
            )
            axes.set(title=f"Noise scale: {value}", ylabel="tr($\\Sigma$) / |G|$^2$")
            axes.set(xlabel=f"batches of {self.big} averaged")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return axes


def noise_scale(
    model: nn.Module,
    variables: Any,
    batches: Iterable[Batch],
    *,
    small: int,
    loss: Loss = cross_entropy,
    bn: Statistics = "running",
    train: bool = False,
) -> NoiseScale:
    """tr(Sigma) / |G|^2 from squared gradient norms at two batch sizes, averaged over batches.

    batches: of one size, a multiple of `small`; the loss must be a mean over examples. Each batch
    is split into small batches of `small`; the mean squared norm of their gradients and the squared
    norm of the mean gradient give the estimate. bn="running": statistics frozen; a number k: the
    loss of a small batch is the mean over its ghost batches of k, in training mode. `train` turns
    on dropout in a network without batch norm.
    Raises InputError for no batches, sizes that do not divide or differ, and train=True with batch
    norm and bn="running".
    Cost: one forward and backward pass over the data; memory of `small` examples' activations and 2
    x parameters. Source: McCandlish et al. 2018, appendix A.1.
    """
    model, variables = entry(model, variables)
    train = is_training(bn) or train
    frozen = bn == "running" and has_batch_norm(variables)
    allowed = "False where batch norm's statistics are frozen, or bn=k for ghost batches"
    require(not (train and frozen), "train", train, allowed)
    norms, size = [], 0
    for batch in batches:
        groups, size = _small_batches(batch, small, bn, size)
        first = jax.tree.map(lambda leaf: leaf[0, 0], groups)
        validate_inputs(model, variables, first, loss, train, every=groups)
        norms.append(_square_norms(variables, groups, model=model, loss=loss, train=train))
    require(bool(norms), "batches", "empty", "one batch or more")
    estimates = _estimates(np.array(jax.device_get(norms), float), small, size)
    g2, trace = (float(value) for value in estimates.mean(0))
    return NoiseScale(
        g2=g2,
        trace_sigma=trace,
        scale=_ratio(trace, g2),
        standard_error=_jackknife_error(estimates),
        small=small,
        big=size,
        bn=bn,
        train=train,
        estimates=tuple((float(a), float(b)) for a, b in estimates),
    )


def _small_batches(batch: Batch, small: int, bn: Statistics, size: int) -> tuple[Any, int]:
    """The batch split into (small batches, ghost batches, examples); and its size.

    size: that of the previous batch, which must be the same; 0 for the first.
    """
    big = batch_size(batch)
    fits = isinstance(small, int) and 0 < small < big and big % small == 0
    require(fits, "small", small, f"below {big}, and a divisor of it")
    require(size in (0, big), "batches", f"of {size} and {big} examples", "batches of one size")
    ghost = small if bn == "running" else bn
    allowed = f"'running', or a number of examples that divides small={small}"
    require(small % ghost == 0, "bn", bn, allowed)
    return split_examples(batch, big // small, small // ghost, ghost), big


def _estimates(norms: np.ndarray, small: int, big: int) -> np.ndarray:
    """(batches, 2) of |G_small|^2 and |G_big|^2 -> the same of |G|^2 and tr(Sigma)."""
    at_small, at_big = norms.T
    g2 = (big * at_big - small * at_small) / (big - small)
    trace = (at_small - at_big) / (1 / small - 1 / big)
    return np.stack([g2, trace], axis=1)


def _ratio(trace: float, g2: float) -> float:
    return float(trace / g2) if g2 > 0 else math.nan


def _jackknife_error(estimates: np.ndarray) -> float:
    if len(estimates) < 2:
        return math.nan
    without_one = estimates.sum(0) - estimates
    ratios = np.array([_ratio(trace, g2) for g2, trace in without_one])
    return float(np.sqrt((len(ratios) - 1) * np.mean((ratios - ratios.mean()) ** 2)))


@functools.partial(jax.jit, static_argnames=("model", "loss", "train"))
@canonicalize_conv_layouts
def _square_norms(
    variables: Any, groups: Any, *, model: nn.Module, loss: Loss, train: bool
) -> tuple[Array, Array]:
    """Mean squared norm of the small batches' gradients, squared norm of their mean.

    groups: arrays (small batches, ghost batches, examples, ...).
    """
    count, ghosts = jax.tree.leaves(groups)[0].shape[:2]

    def gradient(index: Array, ghost: Any) -> Any:
        return batch_gradient(model, variables, ghost, index, loss, train)

    def step(total: Any, part: Any) -> tuple[Any, Array]:
        index, group = part
        each = jax.vmap(gradient)(index * ghosts + jnp.arange(ghosts), group)
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
        return jax.tree.map(jnp.add, total, mean), sum_squares(jax.tree.leaves(mean))

    zeros = jax.tree.map(jnp.zeros_like, as_real(variables["params"]))
    total, squares = lax.scan(step, zeros, (jnp.arange(count), groups))
    return jnp.mean(squares), sum_squares(jax.tree.leaves(total)) / count**2
