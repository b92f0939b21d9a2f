"""Per-example gradients: mean, variance and signal-to-noise ratio by layer.

Liu, Jiang, Bai, Chen and Wang, "Understanding why neural networks generalize well through GSNR of
parameters", 2020 (arXiv:2001.07384).
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from deepjax.analysis.core.batch import batch_size
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    base_key,
    cross_entropy,
    entry,
    has_batch_norm,
    loss_of,
    validate_inputs,
)
from deepjax.analysis.core.params import (
    Path,
    as_real,
    from_real,
    path_string,
    real_count,
    restored,
    sum_dtype,
)
from deepjax.analysis.gradients.by_layer import leaves_by_layer, sort_by_call
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require

Statistics = Literal["running"] | int
"""Statistics of batch norm: "running", or those of ghost batches of that many examples."""

ROUNDING = 1e-5  # of a layer's maximum gradient: smaller ones are 0 but for float32's rounding


@dataclasses.dataclass(frozen=True)
class LayerGradients:
    """One layer: a module that owns parameters."""

    layer: str
    """Path of the module."""
    parameters: int
    """Number of real numbers: a complex parameter counts as two, its variance is the sum of
    both."""
    mean_norm: float
    """L2 norm of the mean gradient."""
    example_norm: float
    """Mean of the L2 norms of the single gradients."""
    variance: float
    """Sum over the layer's parameters of the variance between gradients (unbiased): for examples
    the layer's part of tr(Sigma), for ghost batches of k that divided by k."""
    gsnr: float
    """Signal-to-noise ratio mean^2 / variance of a parameter, without the part that noise alone has
    (about 1 / count; unbiased for Gaussian gradients, and so sometimes below 0), averaged over the
    parameters whose gradient is above rounding (1e-5 of the layer's maximum), unlike that of a bias
    before batch norm. NaN if there are none or fewer than four gradients; infinite if all gradients
    are equal."""


@dataclasses.dataclass(frozen=True, eq=False)
class PerExampleGradients:
    """Statistics of the gradients of a batch by layer, in forward order."""

    bn: Statistics
    """"running": each gradient is of one example, with frozen statistics; k: of a ghost batch of k,
    with its own statistics."""
    has_batch_norm: bool
    """Whether the network keeps batch statistics; if not, `bn` is only the examples per
    gradient."""
    examples: int
    count: int
    """Number of gradients: examples / k."""
    layers: tuple[LayerGradients, ...]
    gradients: Any
    """With keep=True the tree of all gradients, like the parameters with one more leading axis of
    length `count`; else None. For complex parameters the direction of steepest ascent, the
    conjugate of what `jax.grad` returns."""

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per layer."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    def plot(self, ax: Any = None) -> Any:
        """Norm of the mean gradient, mean norm of the single ones, and the GSNR, by layer.

        On one logarithmic axis; returns the matplotlib Axes.
        """
        from deepjax.analysis.plots import COLORS, canvas, layer_ticks

        rows = self.layers
        each = "an example" if self.bn == "running" else f"a ghost batch of {self.bn}"
        lines = (
            (f"norm of {each}'s gradient (mean)", "s--", [row.example_norm for row in rows]),
            ("norm of the mean gradient", "o-", [row.mean_norm for row in rows]),
            ("signal to noise (GSNR)", "^:", [row.gsnr for row in rows]),
        )
        with canvas(ax, 6.4, 4.4) as axes:
            axes.set_yscale("log")
            for (label, style, values), color in zip(lines, COLORS, strict=False):
                positive = np.where(np.array(values) > 0, values, np.nan)
                axes.plot(positive, style, color=color, ms=3.5, label=label)
            axes.set(title=self._plot_title(), ylabel="L2 norm, ratio")
            layer_ticks(axes, [row.layer for row in rows])
            axes.legend()
        return axes

    def _plot_title(self) -> str:
        known = [row.gsnr for row in self.layers if not math.isnan(row.gsnr)]
        if not known:
            return f"{self.count} gradients: too few for a signal"
        median = float(np.median(known))
        if median > 0:
            return f"{self.count} gradients: median signal to noise of a layer {median:.2g}"
        return f"{self.count} gradients: no signal above the noise in most layers"


def per_example_gradients(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    *,
    loss: Loss = cross_entropy,
    bn: Statistics = "running",
    keep: bool = False,
    chunk: int = 16,
) -> PerExampleGradients:
    """The gradient of each example: norms, variance and signal-to-noise ratio by layer.

    batch: as in `trace`; the first axis of every array is that of the examples. `keep`: also return
    all gradients. `chunk`: number of gradients computed at once. Under batch norm a single example
    has no gradient of its own. `bn` selects the substitute: "running" is the network in evaluation
    (frozen statistics, no dropout); a number k is training over ghost batches of k consecutive
    examples, each with its own statistics and dropout mask, and one "gradient" is that of a ghost
    batch.
    Raises InputError for a batch that does not fit, a k that does not divide it, and fewer than two
    gradients.
    Cost: one forward and backward pass over the batch; memory (chunk + 4) x parameters, as only
    running moments are kept, and with keep=True count x parameters. Compiled once per network, loss
    and shape.
    Source: GSNR, Liu et al. 2020, section 2; ghost batches, Hoffer et al. 2017 (arXiv:1705.08741).
    """
    model, variables = entry(model, variables)
    train, size = is_training(bn), 1 if bn == "running" else bn
    fits = isinstance(chunk, int) and chunk >= 1
    require(fits, "chunk", chunk, "a number of gradients, 1 or more")
    examples = batch_size(batch)
    allowed = f"'running', or a number of examples that divides the batch of {examples}"
    require(examples % size == 0, "bn", bn, allowed)
    count = examples // size
    allowed = f"what leaves two gradients or more; the batch of {examples} leaves {count}"
    require(count >= 2, "bn", bn, allowed)
    groups = split_examples(batch, count, size)
    first = jax.tree.map(lambda leaf: leaf[0], groups)
    validate_inputs(model, variables, first, loss, train, every=groups)
    statistics, gradients = _statistics(
        variables, groups, model=model, loss=loss, train=train, chunk=min(chunk, count), keep=keep
    )
    numbers = jax.device_get(statistics)
    leaves = leaves_by_layer(variables["params"])
    layers = tuple(
        LayerGradients(
            path_string(layer), sum(map(real_count, leaves[layer])), *map(float, numbers[layer])
        )
        for layer in sort_by_call(leaves, model, variables, batch, train)
    )
    return PerExampleGradients(bn, has_batch_norm(variables), examples, count, layers, gradients)


def is_training(bn: Statistics) -> bool:
    """Whether the network runs in training mode for these statistics."""
    fits = bn == "running" or (isinstance(bn, int) and not isinstance(bn, bool) and bn >= 1)
    require(fits, "bn", bn, "'running', or a number of examples that share their statistics")
    return bn != "running"


def split_examples(batch: Batch, *sizes: int) -> Any:
    """The batch with its first axis split into these; a scalar is repeated for every group."""

    def split(leaf: Any) -> Array:
        if jnp.ndim(leaf):
            return jnp.reshape(leaf, (*sizes, *jnp.shape(leaf)[1:]))
        return jnp.broadcast_to(leaf, sizes[:-1])

    return jax.tree.map(split, batch)


def batch_gradient(
    model: nn.Module, variables: Any, batch: Batch, index: Array, loss: Loss, train: bool
) -> Any:
    """Gradient of a batch's loss, a tree of real numbers as from `as_real`.

    index: distinguishes the random streams of several batches.
    """
    params, rngs = variables["params"], base_key(model, index)

    def value(view: Any) -> Array:
        given = {**variables, "params": restored(view, params)}
        return loss_of(model, given, batch, loss, train, rngs)

    return jax.grad(value)(as_real(params))


def sum_squares(leaves: list[Array], first: int = 0) -> Array:
    """Sum of squares over the leaves and all axes from the first on."""
    sums = [jnp.sum(jnp.square(leaf), axis=tuple(range(first, leaf.ndim))) for leaf in leaves]
    return functools.reduce(jnp.add, sums)


class _Moments(NamedTuple):
    count: Array
    mean: Any
    squares: Any
    """Sums of squared differences from the mean."""


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
    """By layer the numbers of LayerGradients; and the gradients, or None."""
    count = jax.tree.leaves(groups)[0].shape[0]
    full = count - count % chunk  # gradients in full chunks

    def gradient(index: Array, group: Any) -> Any:
        return batch_gradient(model, variables, group, index, loss, train)

    def step(moments: _Moments, part: Any) -> tuple[_Moments, Any]:
        gradients = jax.vmap(gradient)(*part)
        norms = {
            layer: jnp.sqrt(sum_squares(leaves, 1))
            for layer, leaves in leaves_by_layer(gradients).items()
        }
        return _merge(moments, _moments(gradients)), (norms, gradients if keep else None)

    parts = (jnp.arange(count), groups)
    chunks = jax.tree.map(
        lambda leaf: leaf[:full].reshape(full // chunk, chunk, *leaf.shape[1:]), parts
    )
    zeros = jax.tree.map(jnp.zeros_like, as_real(variables["params"]))
    none = jnp.zeros((), sum_dtype(*jax.tree.leaves(zeros)))
    # A scan, since lax.map would stack all gradients.
    moments, kept = lax.scan(step, _Moments(none, zeros, zeros), chunks)
    kept = jax.tree.map(lambda leaf: leaf.reshape(full, *leaf.shape[2:]), kept)
    if full < count:
        moments, last = step(moments, jax.tree.map(lambda leaf: leaf[full:], parts))
        kept = jax.tree.map(lambda first, rest: jnp.concatenate([first, rest]), kept, last)
    norms, gradients = kept
    if keep:
        gradients = from_real(gradients, variables["params"])
    return _layer_numbers(moments, norms), gradients


def _moments(gradients: Any) -> _Moments:
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)
    squares = jax.tree.map(
        lambda leaf, mean: jnp.sum(jnp.square(leaf - mean[None]), axis=0), gradients, mean
    )
    first = jax.tree.leaves(gradients)[0]
    return _Moments(jnp.asarray(first.shape[0], first.dtype), mean, squares)


def _merge(a: _Moments, b: _Moments) -> _Moments:
    """Moments of both parts (Chan et al. 1979).

    Mean of squares minus square of the mean would cancel where the signal is strong.
    """
    count = a.count + b.count
    mean = jax.tree.map(lambda x, y: x + (y - x) * (b.count / count), a.mean, b.mean)
    between = jax.tree.map(
        lambda x, y: jnp.square(y - x) * (a.count * b.count / count), a.mean, b.mean
    )
    squares = jax.tree.map(lambda x, y, z: x + y + z, a.squares, b.squares, between)
    return _Moments(count, mean, squares)


def _layer_numbers(moments: _Moments, norms: dict[Path, Array]) -> dict[Path, tuple[Array, ...]]:
    variances = jax.tree.map(lambda leaf: leaf / (moments.count - 1), moments.squares)
    variances = leaves_by_layer(variances)
    return {
        layer: (
            jnp.sqrt(sum_squares(means)),
            jnp.mean(norms[layer]),
            functools.reduce(jnp.add, [jnp.sum(leaf) for leaf in variances[layer]]),
            _gsnr(means, variances[layer], moments.count),
        )
        for layer, means in leaves_by_layer(moments.mean).items()
    }


def _gsnr(means: list[Array], variances: list[Array], count: Array) -> Array:
    """Unbiased: for n Gaussian gradients, E[mean^2 / var] = (ratio + 1/n) (n - 1) / (n - 3)."""
    mean, variance = (
        jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]) for leaves in (means, variances)
    )
    sizes = jnp.square(mean) + variance
    alive = sizes > ROUNDING**2 * jnp.max(sizes)
    ratios = jnp.where(alive, jnp.square(mean) / jnp.where(alive, variance, 1), 0)
    average = jnp.sum(ratios) / jnp.sum(alive.astype(ratios.dtype))
    return jnp.where(count > 3, average * (count - 3) / (count - 1) - 1 / count, jnp.nan)
