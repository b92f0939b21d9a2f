"""Gradients of single examples, what they agree on by layer, and the gradient noise scale.

Liu, Jiang, Bai, Chen and Wang, "Understanding why neural networks generalize well through GSNR of parameters", 2020
(arXiv:2001.07384): the gradient's signal-to-noise ratio. McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch
training", 2018 (arXiv:1812.06162): the simple noise scale.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from deepjax.analysis.core.batch import batch_size
from deepjax.analysis.core.calls import all_calls
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    Model,
    base_key,
    cross_entropy,
    entry,
    has_batch_norm,
    inputs_of,
    loss_of,
    validate_inputs,
)
from deepjax.analysis.core.params import (
    Path,
    as_real,
    by_path,
    from_real,
    path_string,
    real_count,
    restored,
    sum_dtype,
)
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require

Statistics = Literal["running"] | int
ROUNDING = 1e-5  # of a layer's largest gradient: what is below is 0 but for float32's rounding


@dataclasses.dataclass(frozen=True)
class LayerGradients:
    """One layer: the module that owns the parameters."""

    layer: str
    """Path of the module."""
    parameters: int
    """Real numbers: a complex parameter counts as two, its variance as the sum of both."""
    mean_norm: float
    """L2 norm of the mean gradient."""
    example_norm: float
    """Mean of the L2 norms of the single gradients."""
    variance: float
    """Sum over the layer's parameters of the variance between gradients (unbiased): of examples the layer's part of tr(Sigma), of
    ghost batches of k that over k."""
    gsnr: float
    """mean^2 / variance of a parameter, without the part that noise alone has (about 1 / count; unbiased for Gaussian gradients,
    and so below 0 at times), averaged over those whose gradient is above rounding (1e-5 of the layer's largest), such as a bias
    before batch norm is not. NaN without any, and of fewer than four gradients; infinite where all gradients are one."""


@dataclasses.dataclass(frozen=True, eq=False)
class PerExample:
    """What the gradients of a batch have in common, layer by layer in the order of the forward pass."""

    bn: Statistics
    """"running": each gradient is of one example, with frozen statistics; k: of a ghost batch of k, with its own statistics."""
    normalised: bool
    """Whether the network keeps batch statistics at all; without them `bn` only says how many examples a gradient is of."""
    examples: int
    count: int
    """Number of gradients: examples / k."""
    layers: tuple[LayerGradients, ...]
    gradients: Any
    """With keep=True the tree of all gradients, like the parameters with one more leading axis of length `count`; else None. Of
    complex parameters the direction of steepest ascent, the conjugate of what `jax.grad` returns."""

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a layer."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    def plot(self, ax: Any = None) -> Any:
        """Norm of the mean gradient and mean norm of the single ones by layer, with the GSNR; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas, layer_ticks

        rows = self.layers
        each = "an example" if self.bn == "running" else f"a ghost batch of {self.bn}"
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
                title=f"{self.count} gradients: {signal if known else 'too few for a signal'}",
                ylabel="L2 norm, ratio",
            )
            layer_ticks(axes, [row.layer for row in rows])
            axes.legend()
        return axes


def per_example_gradients(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    *,
    loss: Loss = cross_entropy,
    bn: Statistics = "running",
    keep: bool = False,
    chunk: int = 16,
) -> PerExample:
    """The gradient of each example: norms, variance and signal-to-noise ratio by layer.

    batch: as in `forward`, the first axis of every array is the examples'. Under batch normalisation an example has no gradient
    of its own, so `bn` says what stands for it: "running" is the network in evaluation (frozen statistics, no dropout); a number
    k is in training over ghost batches of k consecutive examples, each with its own statistics and dropout mask, and one
    "gradient" is a ghost batch's. The result states which.
    Raises InputError for a batch that does not fit, a k that does not divide it, and fewer than two gradients.
    Cost: one forward and backward pass over the batch, `chunk` gradients at a time; memory (chunk + 4) x parameters, as only
    running moments are kept, and with keep=True count x parameters (batch x parameters with "running"). Compiled once for a
    network, loss and shape. Source: GSNR, Liu et al. 2020, section 2; ghost batches, Hoffer et al. 2017 (arXiv:1705.08741).
    """
    model, variables = entry(model, variables)
    train, size = _mode(bn), 1 if bn == "running" else bn
    require(
        isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of gradients, 1 or more"
    )
    examples = batch_size(batch)
    require(
        examples % size == 0,
        "bn",
        bn,
        f"'running', or a number of examples that divides the batch of {examples}",
    )
    count = examples // size
    require(
        count >= 2,
        "bn",
        bn,
        f"what leaves two gradients or more; the batch of {examples} leaves {count}",
    )
    groups = _split(batch, count, size)
    validate_inputs(
        model, variables, jax.tree.map(lambda leaf: leaf[0], groups), loss, train, every=groups
    )
    found, gradients = _statistics(
        variables, groups, model=model, loss=loss, train=train, chunk=min(chunk, count), keep=keep
    )
    numbers = jax.device_get(found)
    sizes = {
        layer: sum(map(real_count, leaves))
        for layer, leaves in by_layer(variables["params"]).items()
    }
    order = call_order(model, variables, batch, train, sizes)
    layers = tuple(
        LayerGradients(path_string(layer), sizes[layer], *map(float, numbers[layer]))
        for layer in order
    )
    return PerExample(bn, has_batch_norm(variables), examples, count, layers, gradients)


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """The simple noise scale tr(Sigma) / |G|^2: the batch size at which noise and signal of a step are equal."""

    g2: float
    """Squared norm of the true gradient, estimated without bias; below 0 where the batches are too few."""
    trace_sigma: float
    """Trace of the covariance of one example's gradient."""
    scale: float
    """trace_sigma / g2, in examples; NaN where g2 is not above 0."""
    error: float
    """Standard error of the scale by the jackknife over batches; NaN for one batch."""
    small: int
    big: int
    bn: Statistics
    train: bool
    estimates: tuple[tuple[float, float], ...]
    """(g2, trace_sigma) of each batch."""

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a batch: its own estimates, and the scale from all batches so far."""
        sums = np.cumsum(self.estimates, axis=0)
        return [
            {"batch": i, "g2": g2, "trace_sigma": trace, "scale": _ratio(total[1], total[0])}
            for i, ((g2, trace), total) in enumerate(zip(self.estimates, sums, strict=True), 1)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The scale against the number of batches averaged; returns the matplotlib Axes."""
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas

        rows = self.rows()
        with canvas(ax, 5.2, 3.8) as axes:
            axes.plot(
                [row["batch"] for row in rows],
                [row["scale"] for row in rows],
                "o-",
                color=COLORS[0],
                ms=4,
            )
            error = ""
            if math.isfinite(self.scale) and math.isfinite(self.error):
                axes.axhspan(
                    self.scale - self.error,
                    self.scale + self.error,
                    color=COLORS[0],
                    alpha=0.15,
                    linewidth=0,
                )
                error = f" ± {self.error:.2g}"
            value = (
                f"{self.scale:.3g}{error} examples"
                if math.isfinite(self.scale)
                else "not measurable: no signal above the noise"
            )
            axes.set(
                title=f"Noise scale: {value}",
                xlabel=f"batches of {self.big} averaged",
                ylabel="tr($\\Sigma$) / |G|$^2$",
            )
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
    """tr(Sigma) / |G|^2 from squared gradient norms at two batch sizes, averaged over batches before the division.

    batches: of one size, a multiple of `small`; the loss must be a mean over examples. Each is cut into shares of `small`, whose
    mean squared norm is the small batch's, and the squared norm of whose mean gradient is the big one's. bn="running": statistics
    frozen; a number k: the loss of a share is the mean over its ghost batches of k, in training. `train` turns on dropout where
    nothing is batch-normalised.
    Raises InputError for no batches, sizes that do not divide or differ, and train=True with batch norm and bn="running".
    Cost: one forward and backward pass over the data; memory of `small` examples' activations and 2 x parameters.
    Source: McCandlish et al. 2018, appendix A.1.
    """
    model, variables = entry(model, variables)
    train = _mode(bn) or train
    frozen = bn == "running" and has_batch_norm(variables)
    require(
        not (train and frozen),
        "train",
        train,
        "False where batch norm's statistics are frozen, or bn=k for ghost batches",
    )
    norms, size = [], 0
    for batch in batches:
        groups, size = _shares(batch, small, bn, size)
        validate_inputs(
            model,
            variables,
            jax.tree.map(lambda leaf: leaf[0, 0], groups),
            loss,
            train,
            every=groups,
        )
        norms.append(_square_norms(variables, groups, model=model, loss=loss, train=train))
    require(bool(norms), "batches", "empty", "one batch or more")
    estimates = _estimates(np.array(jax.device_get(norms), float), small, size)
    g2, trace = (float(value) for value in estimates.mean(0))
    pairs = tuple((float(a), float(b)) for a, b in estimates)
    return NoiseScale(
        g2, trace, _ratio(trace, g2), _jackknife(estimates), small, size, bn, train, pairs
    )


def by_layer(tree: Any) -> dict[Path, list[Any]]:
    """The leaves of a params-like tree by the path of the module that owns them; () is the network itself."""
    found: dict[Path, list[Any]] = {}
    for path, leaf in by_path(tree).items():
        found.setdefault(path[:-1], []).append(leaf)
    return found


def call_order(
    model: Model, variables: Any, batch: Batch, train: bool, layers: Iterable[Path]
) -> list[Path]:
    """The layers in the order in which the forward pass ends them; those that it does not call come last. Nothing is computed."""
    places: dict[str, int] = {}
    for call in all_calls(model, variables, inputs_of(batch), train):
        places.setdefault(call.path, len(places))
    return sorted(layers, key=lambda layer: places.get(path_string(layer), len(places)))


def _mode(bn: Statistics) -> bool:
    """Whether the network is in training."""
    fits = bn == "running" or (isinstance(bn, int) and not isinstance(bn, bool) and bn >= 1)
    require(fits, "bn", bn, "'running', or a number of examples that share their statistics")
    return bn != "running"


def _split(batch: Batch, *sizes: int) -> Any:
    """The examples in groups of the last size; a scalar, which belongs to all of them, once a group."""

    def split(leaf: Any) -> Array:
        return (
            jnp.reshape(leaf, (*sizes, *jnp.shape(leaf)[1:]))
            if jnp.ndim(leaf)
            else jnp.broadcast_to(leaf, sizes[:-1])
        )

    return jax.tree.map(split, batch)


def _shares(batch: Batch, small: int, bn: Statistics, size: int) -> tuple[Any, int]:
    """The batch cut into (shares, ghost batches, examples), and its size, which must be that of the batch before."""
    big = batch_size(batch)
    require(
        isinstance(small, int) and 0 < small < big and big % small == 0,
        "small",
        small,
        f"below {big}, and a divisor of it",
    )
    require(size in (0, big), "batches", f"of {size} and {big} examples", "batches of one size")
    ghost = small if bn == "running" else bn
    require(
        small % ghost == 0,
        "bn",
        bn,
        f"'running', or a number of examples that divides small={small}",
    )
    return _split(batch, big // small, small // ghost, ghost), big


def _estimates(norms: np.ndarray, small: int, big: int) -> np.ndarray:
    """(batches, 2) of |G_small|^2 and |G_big|^2 -> the same of |G|^2 and tr(Sigma)."""
    at_small, at_big = norms.T
    g2 = (big * at_big - small * at_small) / (big - small)
    trace = (at_small - at_big) / (1 / small - 1 / big)
    return np.stack([g2, trace], axis=1)


def _ratio(trace: float, g2: float) -> float:
    return float(trace / g2) if g2 > 0 else math.nan


def _jackknife(estimates: np.ndarray) -> float:
    if len(estimates) < 2:
        return math.nan
    left = estimates.sum(0) - estimates
    ratios = np.array([_ratio(trace, g2) for g2, trace in left])
    return float(np.sqrt((len(ratios) - 1) * np.mean((ratios - ratios.mean()) ** 2)))


class _Moments(NamedTuple):
    count: Array
    mean: Any
    squares: Any
    """Sums of squared deviations from the mean."""


def _gradient(
    model: nn.Module, variables: Any, batch: Batch, index: Array, loss: Loss, train: bool
) -> Any:
    """A tree of real numbers, as `as_real` makes of the parameters."""
    params, rngs = variables["params"], base_key(model, index)

    def value(view: Any) -> Array:
        return loss_of(
            model, {**variables, "params": restored(view, params)}, batch, loss, train, rngs
        )

    return jax.grad(value)(as_real(params))


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "chunk", "keep"))
@canonicalize_conv_layouts
def _statistics(
    variables: Any,
    groups: Any,
    *,
    model: nn.Module,
    loss: Loss,
    train: bool,
    chunk: int,
    keep: bool,
) -> tuple[dict[Path, tuple[Array, ...]], Any]:
    """By layer the numbers of LayerGradients, and the gradients or None. A scan, for lax.map would stack every gradient."""
    count = jax.tree.leaves(groups)[0].shape[0]
    whole = count - count % chunk

    def step(sofar: _Moments, part: Any) -> tuple[_Moments, Any]:
        gradients = jax.vmap(
            lambda index, group: _gradient(model, variables, group, index, loss, train)
        )(*part)
        norms = {
            layer: jnp.sqrt(_squares(leaves, 1)) for layer, leaves in by_layer(gradients).items()
        }
        return _merged(sofar, _moments_of(gradients)), (norms, gradients if keep else None)

    parts = (jnp.arange(count), groups)
    cut = jax.tree.map(
        lambda leaf: leaf[:whole].reshape(whole // chunk, chunk, *leaf.shape[1:]), parts
    )
    zeros = jax.tree.map(jnp.zeros_like, as_real(variables["params"]))
    none = jnp.zeros((), sum_dtype(*jax.tree.leaves(zeros)))
    moments, kept = lax.scan(step, _Moments(none, zeros, zeros), cut)
    kept = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), kept)
    if whole < count:
        moments, last = step(moments, jax.tree.map(lambda leaf: leaf[whole:], parts))
        kept = jax.tree.map(lambda first, rest: jnp.concatenate([first, rest]), kept, last)
    return _by_layer(moments, kept[0]), from_real(kept[1], variables["params"]) if keep else None


def _moments_of(gradients: Any) -> _Moments:
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)
    squares = jax.tree.map(
        lambda leaf, mean: jnp.sum(jnp.square(leaf - mean[None]), axis=0), gradients, mean
    )
    first = jax.tree.leaves(gradients)[0]
    return _Moments(jnp.asarray(first.shape[0], first.dtype), mean, squares)


def _merged(a: _Moments, b: _Moments) -> _Moments:
    """Moments of both parts (Chan et al. 1979): mean of squares minus square of mean would cancel where the signal is strong."""
    count = a.count + b.count
    mean = jax.tree.map(lambda x, y: x + (y - x) * (b.count / count), a.mean, b.mean)
    between = jax.tree.map(
        lambda x, y: jnp.square(y - x) * (a.count * b.count / count), a.mean, b.mean
    )
    return _Moments(
        count, mean, jax.tree.map(lambda x, y, z: x + y + z, a.squares, b.squares, between)
    )


def _by_layer(moments: _Moments, norms: dict[Path, Array]) -> dict[Path, tuple[Array, ...]]:
    variances = by_layer(jax.tree.map(lambda leaf: leaf / (moments.count - 1), moments.squares))
    return {
        layer: (
            jnp.sqrt(_squares(means, 0)),
            jnp.mean(norms[layer]),
            functools.reduce(jnp.add, [jnp.sum(leaf) for leaf in variances[layer]]),
            _gsnr(means, variances[layer], moments.count),
        )
        for layer, means in by_layer(moments.mean).items()
    }


def _gsnr(means: list[Array], variances: list[Array], count: Array) -> Array:
    """Of n Gaussian gradients mean^2 / variance expects (true ratio + 1 / n) (n - 1) / (n - 3)."""
    mean, variance = (
        jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]) for leaves in (means, variances)
    )
    sizes = jnp.square(mean) + variance
    alive = sizes > ROUNDING**2 * jnp.max(sizes)
    ratios = jnp.where(alive, jnp.square(mean) / jnp.where(alive, variance, 1), 0)
    average = jnp.sum(ratios) / jnp.sum(alive.astype(ratios.dtype))
    return jnp.where(count > 3, average * (count - 3) / (count - 1) - 1 / count, jnp.nan)


def _squares(leaves: list[Array], first: int) -> Array:
    """Sum of squares over all axes from the first on, and over the leaves."""
    sums = [jnp.sum(jnp.square(leaf), axis=tuple(range(first, leaf.ndim))) for leaf in leaves]
    return functools.reduce(jnp.add, sums)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train"))
@canonicalize_conv_layouts
def _square_norms(
    variables: Any, shares: Any, *, model: nn.Module, loss: Loss, train: bool
) -> tuple[Array, Array]:
    """Mean squared norm of the shares' gradients, squared norm of their mean. shares: (shares, ghost batches, examples, ...)."""
    count, ghosts = jax.tree.leaves(shares)[0].shape[:2]

    def step(total: Any, part: Any) -> tuple[Any, Array]:
        place, share = part
        places = place * ghosts + jnp.arange(ghosts)
        each = jax.vmap(
            lambda index, ghost: _gradient(model, variables, ghost, index, loss, train)
        )(places, share)
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
        return jax.tree.map(jnp.add, total, mean), _squares(jax.tree.leaves(mean), 0)

    zeros = jax.tree.map(jnp.zeros_like, as_real(variables["params"]))
    total, squares = lax.scan(step, zeros, (jnp.arange(count), shares))
    return jnp.mean(squares), _squares(jax.tree.leaves(total), 0) / count**2
