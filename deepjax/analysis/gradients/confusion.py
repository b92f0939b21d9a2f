"""Gradient confusion: inner products and cosines between the gradients of examples.

Sankararaman, De, Xu, Huang and Goldstein, "The impact of neural network overparameterization on
gradient confusion and stochastic gradient descent", 2020 (arXiv:1904.06963).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import LayerNames, Layers, parameter_layers
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.result import Result
from deepjax.analysis.gradients.groups import group_gradient
from deepjax.analysis.network.batch import (
    Batches,
    batch_size,
    count_examples,
    split_examples,
)
from deepjax.analysis.network.module import (
    Batch,
    Loss,
    Model,
    batch_key,
    cross_entropy,
    validate_inputs,
)
from deepjax.analysis.network.task import Task, make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError, require


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GradientConfusion(Result):
    """Inner products of the gradients of examples, or of batches, with each other."""

    products: np.ndarray
    """(gradients, gradients), float64; squared norms on the diagonal."""
    examples_of_each: int | None
    """Examples of one gradient; None where they are not along the first axis."""
    layers: LayerNames
    """Modules whose parameters' gradients are compared; None: all."""
    mode: Mode
    mode_text: str
    has_batch_norm: bool
    """Whether the network keeps batch statistics, whose kind the mode selects."""

    @property
    def eta(self) -> float:
        """The confusion bound: the least eta >= 0 with <g_i, g_j> >= -eta for all i != j."""
        return max(0.0, -float(self.pairs(self.products).min()))

    @property
    def cosines(self) -> np.ndarray:
        """(gradients, gradients); NaN for a gradient that is 0."""
        norms = np.sqrt(np.diag(self.products))
        known = np.where(norms > 0, norms, np.nan)
        return np.clip(self.products / np.outer(known, known), -1, 1)

    def pairs(self, matrix: np.ndarray) -> np.ndarray:
        """The entries above the diagonal: one per pair."""
        return matrix[np.triu_indices(len(matrix), 1)]

    def summary(self) -> dict[str, Any]:
        """The bound, the extreme and mean cosine, and the fraction of pairs in conflict."""
        cosines = self._known_pairs()
        if not len(cosines):
            return {"eta": self.eta, "gradients": len(self.products)}
        return {
            "eta": self.eta,
            "min cosine": float(cosines.min()),
            "mean cosine": float(cosines.mean()),
            "negative cosines": float((cosines < 0).mean()),
            "gradients": len(self.products),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per gradient: its norm, and its cosines with the others."""
        cosines, found = self.cosines, []
        np.fill_diagonal(cosines, np.nan)
        for index, row in enumerate(cosines):
            others = row[np.isfinite(row)]
            found.append(
                {
                    "gradient": index,
                    "norm": math.sqrt(self.products[index, index]),
                    "mean cosine": float(others.mean()) if len(others) else None,
                    "min cosine": float(others.min()) if len(others) else None,
                    "most opposed": int(np.nanargmin(row)) if len(others) else None,
                }
            )
        return found

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Histogram of the cosines of all pairs, with their mean; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        cosines = self._known_pairs()
        with canvas(ax, 5.6, 3.8, title) as axes:
            if len(cosines):
                low, mean = float(cosines.min()), float(cosines.mean())
                edges = np.linspace(low, low + max(np.ptp(cosines), 0.02), 41)
                axes.hist(cosines, edges.tolist(), color=COLORS[0], alpha=0.75)
                axes.axvline(mean, color=COLORS[1], label=f"mean {mean:.2g}")
                axes.legend()
            axes.axvline(0, color="0.5", linewidth=1)
            axes.set_title(f"{self._finding()}\n{self._gradients_text()}")
            axes.set(xlabel="cosine of two gradients", ylabel="pairs")
        return axes

    def _finding(self) -> str:
        from deepjax.analysis.plots import format_number

        cosines = self._known_pairs()
        if not len(cosines):
            return "All gradients are 0"
        negative = 100 * float((cosines < 0).mean())
        eta = f"$\\eta$ = {format_number(self.eta)}"
        return f"{negative:.0f} % of the pairs of gradients are opposed, {eta}"

    def _known_pairs(self) -> np.ndarray:
        cosines = self.pairs(self.cosines)
        return cosines[np.isfinite(cosines)]

    def _gradients_text(self) -> str:
        size = self.examples_of_each
        of = {None: "a batch", 1: "one example"}.get(size, f"{size} examples")
        statistics = f", {self.mode.statistics}" if self.has_batch_norm else ""
        return f"{len(self.products)} gradients of {of}{statistics}"


@instrument
def gradient_confusion(
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
) -> GradientConfusion:
    """Inner products and cosines of all pairs of gradients, and the confusion bound eta.

    The gradients are those of the single examples of a batch; of a list of batches, those of the
    batches; with Ghost(k), those of the ghost batches. Each has random streams of its own.
    layers: compare the gradients of these modules' parameters alone. chunk: gradients held at once.
    Raises InputError for a batch or layers that do not fit, fewer than two gradients, and single
    examples in training with batch statistics, where an example has no gradient of its own.
    Cost: for n gradients in m = n / chunk chunks n (m + 1) / 2 forward and backward passes, as
    chunks are computed again for each pair, and n^2 / 2 inner products; memory 2 x chunk x
    parameters, the activations of `chunk` examples or of one batch, and n^2 numbers.
    Source: Sankararaman et al. 2020, definition 2.1.
    """
    require(
        isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of gradients from 1 up"
    )
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    groups, single = _groups(task)
    count = jax.tree.leaves(groups)[0].shape[0]
    require(count >= 2, "batch", f"of {count} gradient", "two or more examples or batches")
    first = jax.tree.map(lambda leaf: leaf[0], groups)
    validate_inputs(task.network, task.variables, first, loss, mode.train)
    names = parameter_layers(layers, task.variables["params"])
    chunk = min(chunk, count)

    def gradients(start: int) -> Array:
        return _gradients(
            task.variables,
            groups,
            start,
            task.key,
            model=task.network,
            loss=loss,
            train=mode.train,
            layers=names,
            chunk=chunk,
            single=single,
        )

    products = _all_products(gradients, range(0, count, chunk), count, progress)
    size = count_examples(first)
    return GradientConfusion(products, size, names, mode, task.mode_text, task.has_batch_norm)


def _groups(task: Task) -> tuple[Any, bool]:
    """(the data of each gradient along a leading axis, whether each is one example)."""
    if task.data.batches > 1 or task.mode.ghost is not None:
        return task.data.stacked, False
    if task.mode.train and task.has_batch_norm:
        raise InputError(
            f"mode is {task.mode!r}; allowed for the gradients of single examples: EVAL, because "
            "under batch statistics an example has no gradient of its own; or Ghost(k), or a list "
            "of batches"
        )
    return split_examples(task.data.first, batch_size(task.data.first), 1), True


def _all_products(
    gradients: Any, starts: Sequence[int], count: int, progress: Progress
) -> np.ndarray:
    """The symmetric matrix of inner products, block by block."""
    products = np.empty((count, count))
    done, total = 0, len(starts) * (len(starts) + 1) // 2
    for at, start in enumerate(starts):
        left = gradients(start)
        for begin in starts[at:]:
            block = np.asarray(_inner(left, left if begin == start else gradients(begin)))
            rows, columns = min(len(block), count - start), min(len(block), count - begin)
            block = block[:rows, :columns]
            products[start : start + rows, begin : begin + columns] = block
            products[begin : begin + columns, start : start + rows] = block.T
            done += 1
            if progress:
                progress(done, total)
    return products


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "layers", "chunk", "single"))
@canonicalize_conv_layouts
def _gradients(
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
    single: bool,
) -> Array:
    """(chunk, parameters): the gradients from `start` on; after the last it is repeated."""
    count = jax.tree.leaves(groups)[0].shape[0]
    indices = jnp.minimum(start + jnp.arange(chunk), count - 1)

    def gradient(index: Array) -> Array:
        batch: Batch = jax.tree.map(lambda leaf: leaf[index], groups)
        own = batch_key(key, index, count)
        given = {"loss": loss, "train": train, "layers": layers}
        return ravel_pytree(group_gradient(model, variables, batch, own, **given))[0]

    # Batches one after the other: only one holds its activations.
    return jax.vmap(gradient)(indices) if single else lax.map(gradient, indices)


@jax.jit
def _inner(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right.T, precision="highest")
