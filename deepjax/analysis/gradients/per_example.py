"""Per-example gradients: mean, variance and signal-to-noise ratio by layer.

Liu, Jiang, Bai, Chen and Wang, "Understanding why neural networks generalize well through GSNR of
parameters", 2020 (arXiv:2001.07384).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import LayerNames, Layers, parameter_layers, selected_leaves
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import Path, from_real, path_string, real_count, subtree
from deepjax.analysis.core.result import Result
from deepjax.analysis.gradients.by_layer import leaves_by_layer, sort_by_call
from deepjax.analysis.gradients.groups import gradient_groups, group_gradient, sum_squares
from deepjax.analysis.gradients.moments import (
    Moments,
    merge_moments,
    moments_of,
    no_moments,
    signal_to_noise,
)
from deepjax.analysis.network.batch import Batches, count_examples, data_text
from deepjax.analysis.network.module import Loss, Model, cross_entropy, validate_inputs
from deepjax.analysis.network.task import make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require


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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PerExampleGradients(Result):
    """Statistics of the gradients of examples or ghost batches by layer, in forward order."""

    mode: Mode
    """EVAL or TRAIN: each gradient is of one example; Ghost(k): of a ghost batch of k, with its own
    statistics."""
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    has_batch_norm: bool
    """Whether the network keeps batch statistics; if not, Ghost(k) is only the number of examples
    per gradient."""
    examples: int
    count: int
    """Number of gradients: examples / k."""
    layers: tuple[LayerGradients, ...]
    gradients: Any
    """With keep=True all gradients, with a leading axis of length `count`: a tree like the
    parameters, or with `layers` their part; else None. For complex parameters the direction of
    steepest ascent, the conjugate of what `jax.grad` returns."""

    def summary(self) -> dict[str, Any]:
        """Number of gradients, norm of their mean, total variance, median GSNR of the layers."""
        return {
            "gradients": self.count,
            "mean gradient's norm": math.hypot(*(row.mean_norm for row in self.layers)),
            "variance": sum(row.variance for row in self.layers),
            "median GSNR": self._median_gsnr(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per layer."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Norm of the mean gradient, mean norm of the single ones, and the GSNR, by layer.

        On one logarithmic axis; returns the matplotlib Axes.
        """
        from deepjax.analysis.plots import COLORS, canvas, layer_ticks

        rows = self.layers
        size = self.examples // self.count
        each = "an example" if size == 1 else f"a ghost batch of {size}"
        lines = (
            (f"norm of {each}'s gradient (mean)", "s--", [row.example_norm for row in rows]),
            ("norm of the mean gradient", "o-", [row.mean_norm for row in rows]),
            ("signal to noise (GSNR)", "^:", [row.gsnr for row in rows]),
        )
        with canvas(ax, 6.4, 4.4, title) as axes:
            axes.set_yscale("log")
            for (label, style, values), color in zip(lines, COLORS, strict=False):
                positive = np.where(np.array(values) > 0, values, np.nan)
                axes.plot(positive, style, color=color, ms=3.5, label=label)
            data = data_text(self.examples, self.mode, self.has_batch_norm)
            axes.set_title(f"{self._finding()}\n{data}")
            axes.set_ylabel("L2 norm, ratio")
            layer_ticks(axes, [row.layer for row in rows])
            axes.legend()
        return axes

    def _finding(self) -> str:
        median = self._median_gsnr()
        if math.isnan(median):
            return f"{self.count} gradients: too few for a signal"
        if median > 0:
            return f"{self.count} gradients: median signal to noise of a layer {median:.2g}"
        return f"{self.count} gradients: no signal above the noise in most layers"

    def _median_gsnr(self) -> float:
        known = [row.gsnr for row in self.layers if not math.isnan(row.gsnr)]
        return float(np.median(known)) if known else math.nan


@instrument
def per_example_gradients(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    chunk: int = 16,
    progress: Progress = None,
    keep: bool = False,
) -> PerExampleGradients:
    """The gradient of each example: norms, variance and signal-to-noise ratio by layer.

    mode: EVAL is the network in evaluation; with Ghost(k) each "gradient" is that of a ghost batch
    of k consecutive examples in training, with its own statistics; TRAIN is for networks without
    batch statistics: single examples with dropout. Each gradient has random streams of its own.
    Of a list of batches the gradients of all examples are taken together. layers: the gradients of
    these modules' parameters alone. keep: also return all gradients. chunk: number of gradients
    computed at once.
    Raises InputError for a batch or layers that do not fit, fewer than two gradients, and TRAIN
    with batch statistics, under which an example has no gradient of its own.
    Cost: one forward and backward pass over the data; memory (chunk + 4) x parameters, as only
    running moments are kept, and with keep=True count x parameters. Compiled once per network, loss
    and shape.
    Source: GSNR, Liu et al. 2020, section 2; ghost batches, Hoffer et al. 2017 (arXiv:1705.08741).
    """
    fits = isinstance(chunk, int) and chunk >= 1
    require(fits, "chunk", chunk, "a number of gradients, 1 or more")
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    network, params = task.network, task.variables["params"]
    groups = gradient_groups(task)
    count = jax.tree.leaves(groups)[0].shape[0]
    first = jax.tree.map(lambda leaf: leaf[0], groups)
    examples = count * (count_examples(first) or 1)
    given = f"of {examples} example{'s' * (examples > 1)} in {mode!r}"
    require(count >= 2, "batch", given, "what leaves two gradients or more")
    validate_inputs(network, task.variables, first, loss, mode.train)
    names = parameter_layers(layers, params)
    block = selected_leaves(params, names)
    chunks = -(-count // chunk)
    chunk = -(-count // chunks)  # of equal size
    moments, found = no_moments(block), []
    for done in range(chunks):
        moments, part = _add_chunk(
            moments,
            task.variables,
            groups,
            done * chunk,
            task.key,
            model=network,
            loss=loss,
            train=mode.train,
            layers=names,
            chunk=chunk,
            keep=keep,
        )
        found.append(part)
        if progress:
            jax.block_until_ready(part.norms)
            progress(done + 1, chunks)
    norms, gradients = jax.tree.map(lambda *parts: jnp.concatenate(parts)[:count], *found)
    numbers = jax.device_get(_layer_numbers(moments, norms))
    leaves = leaves_by_layer(block)
    rows = tuple(
        LayerGradients(
            path_string(layer), sum(map(real_count, leaves[layer])), *map(float, numbers[layer])
        )
        for layer in sort_by_call(leaves, network, task.variables, first, mode.train)
    )
    return PerExampleGradients(
        mode,
        task.mode_text,
        task.has_batch_norm,
        examples,
        count,
        rows,
        subtree(params, from_real(gradients, block)) if keep else None,
    )


class _Chunk(NamedTuple):
    norms: dict[Path, Array]
    """(gradients,) by layer."""
    gradients: dict[Path, Array] | None


@functools.partial(
    jax.jit,
    static_argnames=("model", "loss", "train", "layers", "chunk", "keep"),
    donate_argnames=("moments",),
)
@canonicalize_conv_layouts
def _add_chunk(
    moments: Moments,
    variables: Any,
    groups: Any,
    start: Any,
    key: Array,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    layers: LayerNames,
    chunk: int,
    keep: bool,
) -> tuple[Moments, _Chunk]:
    """The moments with the gradients from `start` on; the last is repeated without weight."""
    count = jax.tree.leaves(groups)[0].shape[0]
    indices = start + jnp.arange(chunk)

    def gradient(index: Array) -> dict[Path, Array]:
        batch = jax.tree.map(lambda leaf: leaf[index], groups)
        own = jax.random.fold_in(key, index)
        options: dict[str, Any] = {"loss": loss, "train": train, "layers": layers}
        return group_gradient(model, variables, batch, own, **options)

    gradients = jax.vmap(gradient)(jnp.minimum(indices, count - 1))
    norms = {
        layer: jnp.sqrt(sum_squares(leaves, 1))
        for layer, leaves in leaves_by_layer(gradients).items()
    }
    total = merge_moments(moments, moments_of(gradients, indices < count))
    return total, _Chunk(norms, gradients if keep else None)


@jax.jit
def _layer_numbers(moments: Moments, norms: dict[Path, Array]) -> dict[Path, tuple[Array, ...]]:
    """By layer the numbers of LayerGradients."""
    variances = leaves_by_layer(
        {path: leaf / (moments.count - 1) for path, leaf in moments.squares.items()}
    )
    return {
        layer: (
            jnp.sqrt(sum_squares(means)),
            jnp.mean(norms[layer]),
            functools.reduce(jnp.add, [jnp.sum(leaf) for leaf in variances[layer]]),
            signal_to_noise(means, variances[layer], moments.count),
        )
        for layer, means in leaves_by_layer(moments.mean).items()
    }
