"""The gradient noise scale.

McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training", 2018
(arXiv:1812.06162), appendix A.1: the simple noise scale.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import LayerNames, Layers, parameter_layers, selected_leaves
from deepjax.analysis.core.mode import EVAL, Ghost, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import Path, real_leaves
from deepjax.analysis.core.result import Result
from deepjax.analysis.gradients.groups import group_gradient, sum_squares
from deepjax.analysis.network.batch import Batches, batch_size, data_text, list_of, split_examples
from deepjax.analysis.network.module import (
    Loss,
    Model,
    batch_key,
    cross_entropy,
    validate_inputs,
)
from deepjax.analysis.network.task import Task, make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NoiseScale(Result):
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
    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    has_batch_norm: bool
    layers: tuple[str, ...] | None
    """Modules whose parameters' gradient is measured; None: all."""
    estimates: tuple[tuple[float, float], ...]
    """(g2, trace_sigma) of each batch."""

    def summary(self) -> dict[str, Any]:
        """The scale with its error, its two parts, and the number of batches."""
        return {
            "scale": self.scale,
            "standard error": self.standard_error,
            "g2": self.g2,
            "trace_sigma": self.trace_sigma,
            "batches": len(self.estimates),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per batch: its own estimates, and the scale from all batches so far."""
        sums = np.cumsum(self.estimates, axis=0)
        return [
            {"batch": i, "g2": g2, "trace_sigma": trace, "scale": _ratio(total[1], total[0])}
            for i, ((g2, trace), total) in enumerate(zip(self.estimates, sums, strict=True), 1)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The scale after each batch, with the last standard error; returns the Axes."""
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas

        rows, blue = self.rows(), COLORS[0]
        batches, scales = [row["batch"] for row in rows], [row["scale"] for row in rows]
        with canvas(ax, 5.2, 3.8, title) as axes:
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
            mode = Ghost(self.small) if self.mode.train and self.mode.ghost is None else self.mode
            data = data_text(self.big * len(rows), mode, self.has_batch_norm)
            axes.set_title(f"Noise scale: {value}\n{data}")
            axes.set(xlabel=f"batches of {self.big} averaged", ylabel="tr($\\Sigma$) / |G|$^2$")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return axes


@instrument
def noise_scale(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    progress: Progress = None,
    small: int,
) -> NoiseScale:
    """tr(Sigma) / |G|^2 from squared gradient norms at two batch sizes, averaged over batches.

    batch: of a size that is a multiple of `small`; of a list each batch gives an estimate, and
    their spread the standard error. The loss must be a mean over examples. Each batch is split into
    small batches of `small`; the mean squared norm of their gradients and the squared norm of the
    mean gradient give the estimate. mode: in TRAIN every small batch has its own statistics and
    random streams; with Ghost(k) its loss is the mean over its ghost batches of k. layers: of the
    gradient with respect to these modules' parameters. progress: by batch.
    Raises InputError for layers or batches that do not fit, and sizes that do not divide.
    Cost: one forward and backward pass over the data; memory of `small` examples' activations and 2
    x parameters. Source: McCandlish et al. 2018, appendix A.1.
    """
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    batches = list_of(batch)
    big = batch_size(batches[0])
    groups = _small_batches(task, len(batches), big, small)
    first = jax.tree.map(lambda leaf: leaf[0, 0, 0], groups)
    validate_inputs(task.network, task.variables, first, loss, mode.train)
    names = parameter_layers(layers, task.variables["params"])
    norms = []
    for index in range(len(batches)):
        found = _square_norms(
            task.variables,
            jax.tree.map(lambda leaf, i=index: leaf[i], groups),
            batch_key(task.key, index, len(batches)),
            model=task.network,
            loss=loss,
            train=mode.train,
            layers=names,
        )
        norms.append(found)
        if progress:
            jax.block_until_ready(found)
            progress(index + 1, len(batches))
    estimates = _estimates(np.array(jax.device_get(norms), float), small, big)
    g2, trace = (float(value) for value in estimates.mean(0))
    return NoiseScale(
        g2=g2,
        trace_sigma=trace,
        scale=_ratio(trace, g2),
        standard_error=_jackknife_error(estimates),
        small=small,
        big=big,
        mode=mode,
        mode_text=task.mode_text,
        has_batch_norm=task.has_batch_norm,
        layers=names,
        estimates=tuple((float(a), float(b)) for a, b in estimates),
    )


def _small_batches(task: Task, batches: int, big: int, small: int) -> Any:
    """Arrays (batches, small batches, ghost batches, examples, ...)."""
    fits = isinstance(small, int) and 0 < small < big and big % small == 0
    require(fits, "small", small, f"below {big}, and a divisor of it")
    ghost, stacked = task.mode.ghost, task.data.stacked
    if ghost is None:  # by vmap, for which a scalar of each batch is a scalar
        return jax.vmap(lambda batch: split_examples(batch, big // small, 1, small))(stacked)
    allowed = f"a number of examples that divides small={small}"
    require(small % ghost == 0, "mode", task.mode, allowed)
    sizes = (batches, big // small, small // ghost)
    return jax.tree.map(lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]), stacked)


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


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "layers"))
@canonicalize_conv_layouts
def _square_norms(
    variables: Any,
    groups: Any,
    key: Array,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    layers: LayerNames,
) -> tuple[Array, Array]:
    """Mean squared norm of the small batches' gradients, squared norm of their mean.

    groups: arrays (small batches, ghost batches, examples, ...).
    """
    count, ghosts = jax.tree.leaves(groups)[0].shape[:2]

    def gradient(index: Array, ghost: Any) -> dict[Path, Array]:
        own = jax.random.fold_in(key, index)
        options: dict[str, Any] = {"loss": loss, "train": train, "layers": layers}
        return group_gradient(model, variables, ghost, own, **options)

    def step(total: Any, part: Any) -> tuple[Any, Array]:
        index, group = part
        each = jax.vmap(gradient)(index * ghosts + jnp.arange(ghosts), group)
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
        return jax.tree.map(jnp.add, total, mean), sum_squares(mean.values())

    block = real_leaves(selected_leaves(variables["params"], layers))
    zeros = jax.tree.map(jnp.zeros_like, block)
    total, squares = lax.scan(step, zeros, (jnp.arange(count), groups))
    return jnp.mean(squares), sum_squares(total.values()) / count**2
