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

from deepjax.analysis.core.module import (
    Batch,
    Loss,
    Model,
    apply_module,
    cross_entropy,
    entry,
    labels_of,
    mode_text,
    takes_class_labels,
    validate_inputs,
)
from deepjax.analysis.core.taps import Site
from deepjax.analysis.residual.gates import (
    Progress,
    ablate_branches,
    gate_names,
    map_gates,
    residual_sites,
    sample_subsets,
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


@dataclasses.dataclass(frozen=True)
class Lesions:
    """The intact network, the network without each block in turn, and without several at once."""

    train: bool
    kind: Literal["branch", "module"]
    """What was removed: the branch of a residual sum, or a module, whose input then replaces its
    output."""
    loss: float
    error: float
    """Of the intact network."""
    blocks: tuple[Lesion, ...]
    """Without one block, in the order of the forward pass."""
    several: tuple[Lesion, ...]
    """Without random sets of blocks, the smallest sets first."""
    mode: str = ""
    """How the network was set to that mode, and what it samples and writes in evaluation."""

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per lesion, single blocks first; `count` is how many were removed."""
        return [
            {"count": len(lesion.removed), **dataclasses.asdict(lesion)}
            for lesion in (*self.blocks, *self.several)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The error without each block (Veit et al. 2016, Figure 3); returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas, layer_ticks

        names = _without_common_end([lesion.removed[0] for lesion in self.blocks])
        errors = np.array([lesion.error for lesion in self.blocks])
        worst = int(errors.argmax())
        median, most = np.median(errors - self.error), errors[worst] - self.error
        title = (
            f"Without one {self.kind}: error {median:+.2g} in the median, "
            f"{most:+.2g} at most ({names[worst]})"
        )
        intact = f"dashed: with all {len(names)}, {self.error:.3g}"
        x = range(len(names))
        with canvas(ax, 6.4, 4.0) as axes:
            axes.axhline(self.error, color="0.5", linestyle="--", linewidth=1)
            axes.vlines(x, self.error, errors, color=COLORS[0], linewidth=1.2, alpha=0.6)
            axes.plot(x, errors, "o", color=COLORS[0], markersize=4.5)
            axes.text(
                0.98, 0.96, intact, color="0.4", ha="right", va="top", transform=axes.transAxes
            )
            axes.set_title(title)
            limits = _padded_limits([self.error, *errors])
            axes.set(ylabel="error", ylim=limits, xlabel=f"{self.kind} removed")
            layer_ticks(axes, names)
        return axes

    def plot_several(self, ax: Any = None) -> Any:
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
        what = {"branch": "branches", "module": "modules"}[self.kind]
        title = (
            f"{x[-1]} of {len(self.blocks)} {what} removed: "
            f"error {means[-1]:.3g}, from {self.error:.3g}"
        )
        one = {"alpha": 0.3, "markersize": 4, "markeredgewidth": 0, "label": "one set"}
        with canvas(ax, 5.2, 3.8) as axes:
            axes.plot(counts, errors, "o", color=COLORS[0], **one)
            axes.plot(x, means, "o-", color=COLORS[0], markersize=5, label="mean")
            axes.set(title=title, xlabel=f"{what} removed", ylabel="error")
            axes.set(ylim=_padded_limits(errors))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
        return axes


def lesions(
    model: Model,
    variables: Any,
    batch: Batch,
    *,
    loss: Loss = cross_entropy,
    metric: Loss = error_rate,
    modules: Sequence[str] | None = None,
    removed: Sequence[int] = (),
    draws: int = 8,
    seed: int = 0,
    train: bool = False,
    progress: Progress = None,
) -> Lesions:
    """Loss and error of the network without each of its residual branches; nothing is retrained.

    batch: as in `trace`. `metric`: the error, (outputs, batch) -> scalar. `removed`: numbers of
    blocks to remove at once, each in `draws` random sets sampled from `seed` (all sets if there are
    no more).
    `modules`: paths of modules that keep their input's shape, to bypass instead of removing
    branches, so that a plain network can be compared.
    Raises InputError for a network without residual sums (unless `modules` are given), sums inside
    nn.scan, unknown modules, modules that change their input's shape, and counts that do not fit.
    Cost: 1 + blocks + len(removed) x draws forward passes, compiled once per network and shape.
    Source: Veit et al. 2016, sections 4.1 and 4.2.
    """
    model, variables = entry(model, variables)
    gated = residual_sites(model, variables, batch, loss, train, modules)
    validate_inputs(model, variables, batch, metric, train, what="metric")
    names = gate_names(gated)
    require(isinstance(draws, int) and draws >= 1, "draws", draws, "a number of sets, 1 or more")
    for count in removed:
        fits = isinstance(count, int) and 1 <= count <= len(names)
        require(fits, "removed", count, f"1 to the {len(names)} blocks there are")
    rng = np.random.default_rng(seed)
    single = [(i,) for i in range(len(names))]
    several = [
        subset
        for count in sorted(removed)
        for subset in sample_subsets(len(names), count, draws, rng)
    ]

    def evaluate(keep: np.ndarray) -> np.ndarray:
        values = _evaluate(
            model, variables, batch, keep[0], loss=loss, metric=metric, train=train, gated=gated
        )
        return np.array([jax.device_get(values)])

    subsets = [(), *single, *several]
    keep = ~subset_masks(subsets, len(names))
    (intact, *values) = (
        (float(loss), float(error)) for loss, error in map_gates(evaluate, keep, 1, progress)
    )
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
        train=train,
        kind="branch" if modules is None else "module",
        loss=intact[0],
        error=intact[1],
        blocks=rows[: len(single)],
        several=rows[len(single) :],
        mode=mode_text(model, variables, batch, train),
    )


@functools.partial(jax.jit, static_argnames=("model", "loss", "metric", "train", "gated"))
def _evaluate(
    model: Model,
    variables: Any,
    batch: Batch,
    keep: Any,
    *,
    loss: Loss,
    metric: Loss,
    train: bool,
    gated: tuple[Site, ...],
) -> tuple[Array, Array]:
    with ablate_branches(gated, keep):
        outputs, _ = apply_module(model, variables, batch, train)
    return loss(outputs, batch).astype(jnp.float32), metric(outputs, batch).astype(jnp.float32)


def _without_common_end(names: Sequence[str]) -> list[str]:
    """Paths without the last part if it is the same for all, as in "stage1_block1/sum"."""
    parts = [name.rpartition("/") for name in names]
    common = all(head for head, _, _ in parts) and len({last for _, _, last in parts}) == 1
    return [head for head, _, _ in parts] if common else list(names)


def _padded_limits(values: Any) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    padding = 0.12 * (high - low) or 0.1
    return (max(0.0, low - padding) if low >= 0 else low - padding), high + padding
