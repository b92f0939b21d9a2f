"""Lesions: loss and error of a residual network without some of its blocks.

Veit, Wilber and Belongie, "Residual networks behave like ensembles of relatively shallow networks",
2016 (arXiv:1605.06431), sections 4.1 and 4.2.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.result import Result
from deepjax.analysis.network.batch import Batches, mean_over_batches
from deepjax.analysis.network.module import (
    Batch,
    Loss,
    Model,
    apply_module,
    cross_entropy,
    labels_of,
    takes_class_labels,
    validate_inputs,
)
from deepjax.analysis.network.taps import Site, require_layers
from deepjax.analysis.network.task import make_task
from deepjax.analysis.residual.gates import (
    ablate_branches,
    gate_names,
    map_gates,
    residual_sites,
    sample_subsets,
    subset_generator,
    subset_masks,
)
from deepjax.errors import require


@takes_class_labels
def error_rate(outputs: Array, batch: Batch) -> Array:
    """Fraction of wrong top-1 predictions.

    outputs: (..., classes); the batch's labels: integers of shape (...).
    """
    labels = labels_of(batch)
    allowed = f"{outputs.shape[:-1]}, as the outputs'"
    require(outputs.shape[:-1] == labels.shape, "labels", f"of shape {labels.shape}", allowed)
    return jnp.mean((jnp.argmax(outputs, axis=-1) != labels).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Lesion:
    """Loss and error of the network without some of its blocks."""

    removed: tuple[str, ...]
    """Paths of the sums whose branch is removed, or of the bypassed modules; "name#2" is the second
    call of a shared module."""
    loss: float
    error: float
    loss_change: float
    error_change: float
    """Difference from the intact network."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Lesions(Result):
    """The intact network, the network without each block in turn, and without several at once."""

    kind: Literal["branch", "module", "layer"]
    """What was removed: the branch of a residual sum, or a module, whose input then replaces its
    output; "layer": some of both."""
    loss: float
    error: float
    """Of the intact network."""
    blocks: tuple[Lesion, ...]
    """Without one block, in the order of the forward pass."""
    several: tuple[Lesion, ...]
    """Without random sets of blocks, the smallest sets first."""
    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    data_text: str
    """Number of examples, and kind of batch statistics."""

    def summary(self) -> dict[str, Any]:
        """Loss and error of the intact network, and the changes of the error without one block."""
        changes = [lesion.error_change for lesion in self.blocks]
        return {
            "loss": self.loss,
            "error": self.error,
            "blocks": len(self.blocks),
            "median change of the error": float(np.median(changes)),
            "largest": max(changes),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per lesion, single blocks first; `count` is how many were removed."""
        return [
            {"count": len(lesion.removed), **dataclasses.asdict(lesion)}
            for lesion in (*self.blocks, *self.several)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The error without each block (Veit et al. 2016, Figure 3); returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas, layer_ticks

        names = _without_common_end([lesion.removed[0] for lesion in self.blocks])
        errors = np.array([lesion.error for lesion in self.blocks])
        worst = int(errors.argmax())
        median, most = np.median(errors - self.error), errors[worst] - self.error
        finding = (
            f"Without one {self.kind}: error {median:+.2g} in the median, "
            f"{most:+.2g} at most ({names[worst]})"
        )
        intact = f"dashed: with all {len(names)}, {self.error:.3g}"
        x = range(len(names))
        with canvas(ax, 6.4, 4.0, title) as axes:
            axes.axhline(self.error, color="0.5", linestyle="--", linewidth=1)
            axes.vlines(x, self.error, errors, color=COLORS[0], linewidth=1.2, alpha=0.6)
            axes.plot(x, errors, "o", color=COLORS[0], markersize=4.5)
            axes.text(
                0.98, 0.96, intact, color="0.4", ha="right", va="top", transform=axes.transAxes
            )
            axes.set_title(f"{finding}\n{self.data_text}")
            limits = _padded_limits([self.error, *errors])
            axes.set(ylabel="error", ylim=limits, xlabel=f"{self.kind} removed")
            layer_ticks(axes, names)
        return axes

    def plot_several(self, ax: Any = None, title: str | None = None) -> Any:
        """The error against the number of removed blocks (Veit et al. 2016, Figure 5a).

        Returns the matplotlib Axes.
        """
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas

        lesions = (*self.blocks, *self.several)
        counts = np.array([0, *(len(lesion.removed) for lesion in lesions)])
        errors = np.array([self.error, *(lesion.error for lesion in lesions)])
        x = np.unique(counts)
        means = [errors[counts == count].mean() for count in x]
        what = "branches" if self.kind == "branch" else f"{self.kind}s"
        finding = (
            f"{x[-1]} of {len(self.blocks)} {what} removed: "
            f"error {means[-1]:.3g}, from {self.error:.3g}"
        )
        one = {"alpha": 0.3, "markersize": 4, "markeredgewidth": 0, "label": "one set"}
        with canvas(ax, 5.2, 3.8, title) as axes:
            axes.plot(counts, errors, "o", color=COLORS[0], **one)
            axes.plot(x, means, "o-", color=COLORS[0], markersize=5, label="mean")
            axes.set_title(f"{finding}\n{self.data_text}")
            axes.set(xlabel=f"{what} removed", ylabel="error")
            axes.set(ylim=_padded_limits(errors))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
        return axes


@instrument
def lesions(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    chunk: int = 1,
    progress: Progress = None,
    metric: Loss = error_rate,
    removed: Sequence[int] = (),
    draws: int = 8,
) -> Lesions:
    """Loss and error of the network without each of its residual branches; nothing is retrained.

    batch: loss and error are means over the batches. layers: paths or patterns of residual sums,
    whose branch is removed, and of modules that keep their input's shape, which are bypassed, so
    that a plain network can be compared; default all sums. All lesions have the same random
    streams. metric: the error, (outputs, batch) -> scalar. removed: numbers of blocks to remove at
    once, each in `draws` random sets (all sets if there are no more). chunk: lesions evaluated at
    once.
    Raises InputError for a network without residual sums (unless `layers` are given), sums inside
    nn.scan, unknown layers, layers that change their input's shape, counts that do not fit, and a
    function, which has no layers.
    Cost: 1 + blocks + len(removed) x draws forward passes, compiled once per network and shape;
    memory of `chunk` forward passes.
    Source: Veit et al. 2016, sections 4.1 and 4.2.
    """
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    require_layers(task.network, "lesions")
    network, variables, data, train = task.network, task.variables, task.data, mode.train
    validate_inputs(
        network, variables, data.first, metric, train, every=data.stacked, what="metric"
    )
    for name, value in {"draws": draws, "chunk": chunk}.items():
        require(isinstance(value, int) and value >= 1, name, value, "1 or more")
    gated = residual_sites(network, variables, data.first, loss, train, layers)
    names = gate_names(gated)
    single, several = _subsets(len(names), removed, draws, task.key)
    subsets = [(), *single, *several]
    evaluate = functools.partial(
        _evaluate,
        variables,
        data.stacked,
        task.key,
        model=network,
        loss=loss,
        metric=metric,
        train=train,
        gated=gated,
    )
    keep = ~subset_masks(subsets, len(names))
    (intact, *values) = map_gates(evaluate, keep, chunk, progress).tolist()
    rows = tuple(
        Lesion(
            removed=tuple(names[i] for i in subset),
            loss=loss,
            error=error,
            loss_change=loss - intact[0],
            error_change=error - intact[1],
        )
        for subset, (loss, error) in zip(subsets[1:], values, strict=True)
    )
    return Lesions(
        kind=_kind(gated),
        loss=intact[0],
        error=intact[1],
        blocks=rows[: len(single)],
        several=rows[len(single) :],
        mode=mode,
        mode_text=task.mode_text,
        data_text=task.data_text,
    )


def _subsets(
    blocks: int, removed: Sequence[int], draws: int, key: Array
) -> tuple[list[tuple[int, ...]], ...]:
    """The blocks that each lesion removes: each block alone, and random sets of several."""
    for count in removed:
        fits = isinstance(count, int) and 1 <= count <= blocks
        require(fits, "removed", count, f"1 to the {blocks} blocks there are")
    rng = subset_generator(key)
    several = [
        subset for count in sorted(removed) for subset in sample_subsets(blocks, count, draws, rng)
    ]
    return [(i,) for i in range(blocks)], several


def _kind(gated: Sequence[Site]) -> Literal["branch", "module", "layer"]:
    sums = [site.is_sum for site in gated]
    return "branch" if all(sums) else "layer" if any(sums) else "module"


@functools.partial(jax.jit, static_argnames=("model", "loss", "metric", "train", "gated"))
def _evaluate(
    variables: Any,
    stacked: Any,
    key: Array,
    keep: Array,
    *,
    model: Model,
    loss: Loss,
    metric: Loss,
    train: bool,
    gated: tuple[Site, ...],
) -> Array:
    """keep: (lesions, gates) booleans -> (lesions, 2), loss and error."""

    def one(keep: Array) -> Array:
        def measured(key: Array, batch: Batch) -> Array:
            with ablate_branches(gated, keep):
                outputs, _ = apply_module(model, variables, batch, train, key)
            values = (loss(outputs, batch), metric(outputs, batch))
            return jnp.stack([value.astype(jnp.float32) for value in values])

        return mean_over_batches(measured, stacked, key)

    return one(keep[0])[None] if keep.shape[0] == 1 else jax.vmap(one)(keep)


def _without_common_end(names: Sequence[str]) -> list[str]:
    """Paths without the last part if it is the same for all, as in "stage1_block1/sum"."""
    parts = [name.rpartition("/") for name in names]
    common = all(head for head, _, _ in parts) and len({last for _, _, last in parts}) == 1
    return [head for head, _, _ in parts] if common else list(names)


def _padded_limits(values: Any) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    padding = 0.12 * (high - low) or 0.1
    return (max(0.0, low - padding) if low >= 0 else low - padding), high + padding
