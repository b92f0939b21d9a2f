"""Similarity of the representations of layers: linear centred kernel alignment (CKA).

Kornblith, Norouzi, Lee and Hinton, "Similarity of neural network representations revisited", 2019
(arXiv:1905.00414). Over minibatches: Nguyen, Raghu and Kornblith, "Do wide and deep networks learn
the same things?", 2021 (arXiv:2010.15327).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import real_pairs, widened
from deepjax.analysis.core.result import Result
from deepjax.analysis.layers.outputs import read_outputs, readable_outputs
from deepjax.analysis.network.batch import Batches, batch_size
from deepjax.analysis.network.module import (
    Batch,
    Model,
    Network,
    batch_key,
    no_loss,
)
from deepjax.analysis.network.taps import require_layers
from deepjax.analysis.network.task import Task, make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import require

MIN_UNBIASED = 4  # examples: the unbiased estimator divides by n - 3
MAX_NAMES = 28  # of layers on the vertical axis


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Cka(Result):
    """Linear CKA between the layers of one network, or of two."""

    similarity: np.ndarray
    """(layers, other layers); NaN for a layer whose output is the same for all examples."""
    layers: tuple[str, ...]
    """In the order of the calls' ends; the network itself is "(network)"."""
    other_layers: tuple[str, ...]
    skipped_layers: tuple[str, ...]
    """Layers that cannot be read, each with the reason."""
    other_skipped_layers: tuple[str, ...]
    is_other: bool
    """Whether two networks are compared."""
    unbiased: bool
    """Whether HSIC is the unbiased estimate, averaged over batches."""
    mode: Mode
    mode_text: str
    data_text: str

    def summary(self) -> dict[str, Any]:
        """Mean and minimum over the pairs of different layers, and the number of layers."""
        known, counts = self._known(), {"layers": len(self.layers)}
        if self.is_other:
            counts["other layers"] = len(self.other_layers)
        if not len(known):
            return counts
        return {"mean CKA": float(known.mean()), "lowest": float(known.min()), **counts}

    def rows(self) -> list[dict[str, Any]]:
        """One dict per layer: the most similar other layer, and the mean over all of them."""
        found = []
        for name, row in zip(self.layers, self._others(), strict=True):
            known = np.isfinite(row)
            best = int(np.nanargmax(row)) if known.any() else None
            found.append(
                {
                    "layer": name,
                    "most similar": None if best is None else self.other_layers[best],
                    "CKA": None if best is None else float(row[best]),
                    "mean CKA": float(row[known].mean()) if known.any() else None,
                }
            )
        return found

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The similarity of all pairs as a heat map, first layers at the lower left.

        Returns the matplotlib Axes.
        """
        from deepjax.analysis.plots import canvas, layer_ticks

        with canvas(ax, 6.4, 5.6, title) as axes:
            image = axes.imshow(
                self.similarity, vmin=0, vmax=1, cmap="magma", origin="lower", aspect="auto"
            )
            axes.figure.colorbar(image, ax=axes, label="linear CKA")
            layer_ticks(axes, self.other_layers, MAX_NAMES)
            every = -(-len(self.layers) // MAX_NAMES)
            axes.set_yticks(
                range(0, len(self.layers), every), self.layers[::every], rotation=0, fontsize=7
            )
            if self.is_other:
                axes.set(xlabel="layers of the other network", ylabel="layers")
            known = self._known()
            mean = f"mean similarity of layers {known.mean():.2f}" if len(known) else "one layer"
            axes.set_title(f"CKA: {mean}\n{self.data_text}")
            axes.grid(False)
        return axes

    def _known(self) -> np.ndarray:
        """(pairs,): the similarities of different layers that are not NaN."""
        others = self._others()
        return others[np.isfinite(others)]

    def _others(self) -> np.ndarray:
        """The similarities without those of a layer with itself."""
        found = self.similarity.copy()
        if not self.is_other:
            same = [
                self.other_layers.index(name) for name in self.layers if name in self.other_layers
            ]
            rows = [at for at, name in enumerate(self.layers) if name in self.other_layers]
            found[rows, same] = np.nan
        return found


@instrument
def cka(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    progress: Progress = None,
    other: tuple[Model, Any] | None = None,
    other_layers: Layers = None,
    unbiased: bool | None = None,
) -> Cka:
    """Linear CKA between the outputs of layers of a network, or of two networks on the same inputs.

    other: (model, variables) of the second network, default the same. layers, other_layers: of the
    two networks, default all that can be read; without `other` both are `layers`. A layer that is
    called several times has an entry for each call, "act" and "act (2)", all of which the name
    "act" selects.
    unbiased: estimate HSIC without bias, which takes four examples or more in a batch; default:
    for several batches (or ghost batches), over which it is averaged, so that many small batches
    estimate the CKA of all their examples. The biased estimate of one batch is that of Kornblith
    et al.; it is near 1 where a layer has more features than the batch has examples.
    `Cka.skipped_layers` names the layers that cannot be read: those inside nn.scan, nn.remat and
    other transforms, and outputs whose first axis is not the examples'.
    Raises InputError for inputs or layers that do not fit, too few examples, and a function, which
    has no layers.
    Cost: one forward pass of each network, and for each layer a Gram matrix; memory: the
    activations of one batch, and layers x n^2 numbers for n examples of a batch.
    Source: Kornblith et al. 2019, section 3; Nguyen et al. 2021, section 2 (unbiased HSIC: Song et
    al. 2012).
    """
    task = make_task(model, variables, batch, loss=no_loss, mode=mode, key=key)
    require_layers(task.network, "cka")
    second = task
    if other is not None:
        fits = isinstance(other, tuple) and len(other) == 2
        require(fits, "other", type(other).__name__, "a pair (model, variables)")
        second = make_task(*other, batch, loss=no_loss, mode=mode, key=key)
        require_layers(second.network, "cka")
    examples = batch_size(task.data.first)
    unbiased = task.data.batches > 1 if unbiased is None else unbiased
    least = MIN_UNBIASED if unbiased else 2
    require(examples >= least, "batch", f"of {examples} examples", f"{least} examples or more")
    names, skipped = readable_outputs(task, layers, "layers")
    if other is None and other_layers is None:
        other_names, other_skipped = names, skipped
    else:
        other_names, other_skipped = readable_outputs(second, other_layers, "other_layers")
    sums = _sums_over_batches(
        task,
        second,
        names,
        other_names,
        other is not None or names != other_names,
        unbiased,
        progress,
    )
    # An unbiased estimate of a squared norm may be below 0.
    cross, own, others = sums
    norms = np.outer(np.where(own > 0, own, np.nan), np.where(others > 0, others, np.nan))
    return Cka(
        cross / np.sqrt(norms),
        names,
        other_names,
        skipped,
        other_skipped,
        other is not None,
        unbiased,
        mode,
        task.mode_text,
        task.data_text,
    )


def _sums_over_batches(
    task: Task,
    other: Task,
    names: tuple[str, ...],
    other_names: tuple[str, ...],
    differ: bool,
    unbiased: bool,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(HSIC of all pairs, of each layer with itself, of each other layer with itself)."""
    sums: list[Any] = []
    for index in range(task.data.batches):
        one, its = (
            jax.tree.map(lambda leaf, i=index: leaf[i], each.data.stacked) for each in (task, other)
        )
        found = _hsic(
            task.variables,
            other.variables if differ else None,
            one,
            its if differ else None,
            batch_key(task.key, index, task.data.batches),
            model=task.network,
            other=other.network if differ else None,
            train=task.mode.train,
            names=names,
            other_names=other_names,
            unbiased=unbiased,
        )
        parts = [np.asarray(each, np.float64) for each in found]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        if progress:
            progress(index + 1, task.data.batches)
    return sums[0], sums[1], sums[2]


@functools.partial(
    jax.jit, static_argnames=("model", "other", "train", "names", "other_names", "unbiased")
)
@canonicalize_conv_layouts
def _hsic(
    variables: Any,
    other_variables: Any,
    batch: Batch,
    other_batch: Batch,
    key: Array,
    *,
    model: Network,
    other: Network | None,
    train: bool,
    names: tuple[str, ...],
    other_names: tuple[str, ...],
    unbiased: bool,
) -> tuple[Array, Array, Array]:
    centre = _u_centred if unbiased else jnp.asarray  # a Gram of centred features is centred
    ours = _grams(model, variables, batch, train, key, names, centre)
    theirs = ours
    if other is not None:
        theirs = _grams(other, other_variables, other_batch, train, key, other_names, centre)
    cross = jnp.matmul(ours, theirs.T, precision="highest")
    return cross, jnp.sum(jnp.square(ours), axis=1), jnp.sum(jnp.square(theirs), axis=1)


def _grams(
    model: Network,
    variables: Any,
    batch: Batch,
    train: bool,
    key: Array,
    names: tuple[str, ...],
    centre: Any,
) -> Array:
    """(layers, n * n): centred Gram matrices of the layers' outputs."""

    def gram(name: str, value: Array) -> Array | None:
        if name not in names:
            return None
        x = widened(real_pairs(value).reshape(value.shape[0], -1))
        rest = x - jnp.mean(x, axis=0, keepdims=True)
        # What is the same for all examples, but for rounding, is exactly 0.
        rounding = 8 * float(jnp.finfo(x.dtype).eps)
        varies = jnp.sum(jnp.square(rest)) > rounding**2 * jnp.sum(jnp.square(x))
        product = jnp.matmul(rest, rest.T, precision="highest") / x.shape[1]
        return jnp.ravel(centre(jnp.where(varies, product, 0)))

    found, _ = read_outputs(model, variables, batch, train, key, gram)
    return jnp.stack([found[name] for name in names])


def _u_centred(gram: Array) -> Array:
    """A Gram matrix whose product with another is n (n - 3) times the unbiased HSIC.

    The U-centred matrix of Székely and Rizzo 2014; equal to the estimator of Song et al. 2012.
    """
    n = gram.shape[0]
    off = gram * (1 - jnp.eye(n, dtype=gram.dtype))
    sums = jnp.sum(off, axis=1)
    centred = off - (sums[:, None] + sums[None, :]) / (n - 2) + jnp.sum(sums) / ((n - 1) * (n - 2))
    return centred * (1 - jnp.eye(n, dtype=gram.dtype))
