"""Path lengths: how many residual branches the gradient of a residual network passes through.

Veit, Wilber and Belongie, "Residual networks behave like ensembles of relatively shallow networks",
2016 (arXiv:1605.06431), section 4.3. With n residual sums there are 2^n paths from the output to
the input, each of which takes the shortcut or the branch at every sum; whatever a shortcut
computes, such as a projection, belongs to the shortcut.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

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
    inputs_of,
    mode_text,
)
from deepjax.analysis.core.taps import Site
from deepjax.analysis.residual.gates import (
    Progress,
    gate_names,
    map_gates,
    residual_sites,
    route_gradient,
    sample_subsets,
    subset_masks,
)
from deepjax.errors import InputError, require, unknown_name_error


@dataclasses.dataclass(frozen=True)
class PathLength:
    """All paths that take the branch at exactly `length` sums."""

    length: int
    paths: int
    """Number of such paths: n choose length."""
    sampled: int
    norm: float
    """Mean over the sampled paths of the L2 norm of the loss's gradient with respect to the inputs
    of all examples, along one path."""
    standard_error: float
    """Of the norm; 0 if all paths were taken, NaN if one of several was sampled."""
    fraction: float
    """paths x norm, divided by the sum of that over all lengths."""


@dataclasses.dataclass(frozen=True)
class PathLengths:
    """Distribution of the gradient over path lengths."""

    train: bool
    sums: tuple[str, ...]
    """Paths of the residual sums in the order of the forward pass."""
    gradient_norm: float
    """L2 norm of the full gradient with respect to the inputs: of the sum over all paths, which may
    cancel."""
    lengths: tuple[PathLength, ...]
    """0 to n branches."""
    mode: str = ""
    """How the network was set to that mode, and what it samples and writes in evaluation."""

    @property
    def mean_length(self) -> float:
        """Mean length, weighted by the fraction of the gradient."""
        return sum(row.length * row.fraction for row in self.lengths)

    @property
    def interval(self) -> tuple[int, int]:
        """Shortest and longest length of the central 95 % of the gradient."""
        sums = np.cumsum([row.fraction for row in self.lengths])
        low, high = np.searchsorted(sums, [0.025, 0.975])
        return int(low), min(int(high), len(self.sums))

    @property
    def fraction_of_paths(self) -> float:
        """Fraction of all paths whose length lies in the interval."""
        low, high = self.interval
        return sum(row.paths for row in self.lengths[low : high + 1]) / 2 ** len(self.sums)

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per length."""
        return [dataclasses.asdict(row) for row in self.lengths]

    def plot(self, ax: Any = None) -> Any:
        """Number of paths by length, gradient norm of one path, and their product (Figure 6).

        Returns the matplotlib Axes.
        """
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas

        lengths = [row.length for row in self.lengths]
        paths = [row.paths / 2 ** len(self.sums) for row in self.lengths]
        norms = np.array([row.norm for row in self.lengths])
        fractions = np.array([row.fraction for row in self.lengths])
        errors = [row.standard_error for row in self.lengths]
        error = fractions * np.divide(errors, norms, out=np.zeros_like(norms), where=norms > 0)
        low, high = self.interval
        span = f"{low} to {high}" if low < high else f"{low}"
        title = (
            f"95 % of the gradient takes {span} of {len(self.sums)} branches, "
            f"{self.mean_length:.1f} on average"
        )
        blue, red = COLORS[:2]
        with canvas(ax, 6.0, 4.0) as axes:
            axes.axvspan(low - 0.5, high + 0.5, color=blue, alpha=0.08, linewidth=0)
            label = "fraction of the paths"
            axes.plot(lengths, paths, "s--", color="0.5", markersize=3.5, label=label)
            label = "fraction of the gradient"
            axes.plot(lengths, fractions, "o-", color=blue, markersize=4, label=label)
            bottom, top = np.maximum(fractions - error, 0), fractions + error
            axes.vlines(lengths, bottom, top, color=blue, linewidth=1, alpha=0.6)
            right = axes.twinx()
            right.set_yscale("log")
            shown, label = np.where(norms > 1e-30, norms, np.nan), "gradient of one path"
            right.plot(lengths, shown, "^:", color=red, markersize=4, label=label)
            right.set_ylabel("gradient norm of one path", color=red)
            right.tick_params(axis="y", colors=red)
            right.spines["right"].set_visible(True)
            right.grid(False)
            axes.set(title=title, xlabel="branches on the path", ylabel="fraction", ylim=(0, None))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            lines = [*axes.lines, *right.lines]
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 3}
            labels = [str(line.get_label()) for line in lines]
            axes.legend(lines, labels, columnspacing=1.2, **below)
        return axes


def path_lengths(
    model: Model,
    variables: Any,
    batch: Batch,
    *,
    loss: Loss = cross_entropy,
    samples: int = 16,
    seed: int = 0,
    train: bool = False,
    chunk: int = 8,
    progress: Progress = None,
) -> PathLengths:
    """How much of the gradient takes paths of each length: number of paths x gradient of one.

    batch: as in `trace`, with inputs of floats. For each length k, `samples` sets of k sums are
    sampled from `seed` (all sets if there are no more); at these the backward pass goes through the
    branch only, at all others through the shortcut only, and the forward pass is the network's own.
    The gradients of all 2^n paths add up to the full gradient, as the backward pass is linear.
    Raises InputError for a network without residual sums, sums inside nn.scan, inputs without
    floats, and if no path carries any gradient.
    Cost: at most (n + 1) x samples backward passes, and a forward pass for each `chunk` of them,
    compiled once per network and shape; memory of one forward and `chunk` backward passes.
    Source: Veit et al. 2016, section 4.3.
    """
    model, variables = entry(model, variables)
    for name, value in {"samples": samples, "chunk": chunk}.items():
        require(isinstance(value, int) and value >= 1, name, value, "1 or more")
    gated = _gated_sums(model, variables, batch, loss, train)
    names = gate_names(gated)
    n = len(names)
    rng = np.random.default_rng(seed)
    subsets = [sample_subsets(n, length, samples, rng) for length in range(n + 1)]
    branch = subset_masks(itertools.chain(*subsets), n)
    # The first row opens every gate: the full gradient.
    passes = np.concatenate([np.ones((1, n, 2), bool), np.stack([~branch, branch], axis=-1)])
    path_norms = functools.partial(
        _path_norms, model, variables, batch, loss=loss, train=train, gated=gated
    )
    norms = map_gates(path_norms, passes, chunk, progress).astype(np.float64)
    by_length = np.split(norms[1:], np.cumsum([len(group) for group in subsets])[:-1])
    mode = mode_text(model, variables, batch, train)
    return PathLengths(train, names, float(norms[0]), _length_rows(by_length), mode)


def path_gradient(
    model: Model,
    variables: Any,
    batch: Batch,
    branches: Sequence[str],
    *,
    loss: Loss = cross_entropy,
    train: bool = False,
) -> tuple[Array, ...]:
    """The loss's gradient along one path: the branch at the named sums, else the shortcut.

    Returns an array for each input of floats, of its shape; over all 2^n paths they add up to the
    full gradient. Raises InputError as `path_lengths`, and for an unknown sum.
    Cost: one forward and one backward pass. Source: Veit et al. 2016, section 4.3.
    """
    model, variables = entry(model, variables)
    gated = _gated_sums(model, variables, batch, loss, train)
    names = gate_names(gated)
    for name in branches:
        if name not in names:
            raise unknown_name_error("residual sum", name, names)
    branch = np.isin(names, list(branches))
    passes = np.stack([~branch, branch], axis=-1)
    return _path_gradient(model, variables, batch, passes, loss=loss, train=train, gated=gated)


def _length_rows(norms: list[np.ndarray]) -> tuple[PathLength, ...]:
    """norms: those of the sampled paths, for each length."""
    longest = len(norms) - 1
    counts = [math.comb(longest, length) for length in range(longest + 1)]
    means = [float(values.mean()) for values in norms]
    invalid = [length for length, mean in enumerate(means) if not math.isfinite(mean)]
    if invalid or not any(means):
        problem = (
            f"paths of {invalid[0]} branches carry a gradient that is not finite"
            if invalid
            else "no path carries any gradient"
        )
        raise InputError(f"{problem} to the inputs; allowed: a network and a loss that have one")
    # By logarithms: from a thousand sums on the number of paths exceeds any float.
    logs = [
        math.log(n) + math.log(mean) if mean > 0 else -math.inf
        for n, mean in zip(counts, means, strict=True)
    ]
    sizes = np.exp(np.array(logs) - max(logs))
    fractions = sizes / sizes.sum()
    return tuple(
        PathLength(
            length=length,
            paths=counts[length],
            sampled=len(norms[length]),
            norm=means[length],
            standard_error=_standard_error(norms[length], counts[length]),
            fraction=float(fractions[length]),
        )
        for length in range(longest + 1)
    )


def _standard_error(values: np.ndarray, paths: int) -> float:
    if len(values) == paths:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "gated"))
def _path_norms(
    model: Model,
    variables: Any,
    batch: Batch,
    passes: Any,
    *,
    loss: Loss,
    train: bool,
    gated: tuple[Site, ...],
) -> Array:
    """passes: (paths, sums, 2) booleans, as for `route_gradient` -> (paths,) norms."""

    def norm(passes: Array) -> Array:
        gradients = _gradient(model, variables, batch, passes, loss, train, gated)
        flat = jnp.concatenate([jnp.ravel(gradient).astype(jnp.float32) for gradient in gradients])
        # Long paths carry 1e-25 and less, whose square underflows in float32.
        largest = jnp.max(jnp.abs(flat))
        return largest * jnp.linalg.norm(flat / jnp.where(largest > 0, largest, 1))

    return jax.vmap(norm)(passes)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "gated"))
def _path_gradient(
    model: Model,
    variables: Any,
    batch: Batch,
    passes: Any,
    *,
    loss: Loss,
    train: bool,
    gated: tuple[Site, ...],
) -> tuple[Array, ...]:
    return _gradient(model, variables, batch, passes, loss, train, gated)


def _gradient(
    model: Model,
    variables: Any,
    batch: Batch,
    passes: Any,
    loss: Loss,
    train: bool,
    gated: tuple[Site, ...],
) -> tuple[Array, ...]:
    """With respect to the inputs that are floats. passes: (sums, 2)."""
    inputs = inputs_of(batch)

    def value(floats: tuple[Array, ...]) -> Array:
        rest = iter(floats)
        given = tuple(next(rest) if _is_floating(each) else each for each in inputs)
        with route_gradient(gated, passes):
            outputs, _ = apply_module(model, variables, (given, None), train)
        # What the loss itself reads from the inputs is on no path: it gets the original batch.
        return loss(outputs, batch)

    return jax.grad(value)(tuple(jnp.asarray(each) for each in inputs if _is_floating(each)))


def _gated_sums(
    model: Model, variables: Any, batch: Batch, loss: Loss, train: bool
) -> tuple[Site, ...]:
    gated = residual_sites(model, variables, batch, loss, train)
    inputs = inputs_of(batch)
    dtypes = ", ".join(str(jnp.result_type(each)) for each in inputs)
    require(any(map(_is_floating, inputs)), "inputs", dtypes, "floats, which have gradients")
    return gated


def _is_floating(value: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.floating))
