"""Residual networks as sets of paths: what they lose without a block, and how long the paths are that carry the gradient.

Veit, Wilber and Belongie, "Residual networks behave like ensembles of relatively shallow networks", 2016 (arXiv:1605.06431).
A residual block shows where it adds by a module whose call takes (shortcut, branch), two arrays of the output's shape. With n sums
there are 2^n paths from the output to the input, each of which takes the shortcut or the branch at every sum; whatever a shortcut
computes, such as a projection, belongs to the shortcut.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.module import (
    Batch,
    Loss,
    Model,
    cross_entropy,
    entry,
    inputs_of,
    labels_of,
    mode_text,
    run,
    takes_class_labels,
    validate_inputs,
)
from deepjax.analysis.core.taps import Site
from deepjax.analysis.residual.gates import (
    ablate_branches,
    gate_names,
    residual_sites,
    route_gradient,
)
from deepjax.errors import InputError, require, unknown_name_error

Progress = Callable[[int, int], None] | None
"""Called with (evaluations done, evaluations in all)."""


@takes_class_labels
def error_rate(outputs: Array, batch: Batch) -> Array:
    """Share of wrong top-1 answers. outputs: (..., classes); the batch's labels: integers of shape (...)."""
    labels = labels_of(batch)
    require(
        outputs.shape[:-1] == labels.shape,
        "labels",
        f"of shape {labels.shape}",
        f"{outputs.shape[:-1]}, as the outputs'",
    )
    return jnp.mean((jnp.argmax(outputs, axis=-1) != labels).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Lesion:
    """The network without some of its blocks."""

    removed: tuple[str, ...]
    """Paths of the sums whose branch is gone, or of the modules that are bypassed; "name#2" is a shared module's second call."""
    loss: float
    error: float
    loss_change: float
    error_change: float
    """What it is more than the whole network's."""


@dataclasses.dataclass(frozen=True)
class Lesions:
    """The whole network, the network without each block in turn, and without several at once."""

    train: bool
    kind: Literal["branch", "module"]
    """What was removed: the branch of a residual sum, or a module, whose output was replaced by its input."""
    loss: float
    error: float
    """Of the whole network."""
    blocks: tuple[Lesion, ...]
    """Without one block, in the order of the forward pass."""
    several: tuple[Lesion, ...]
    """Without random sets of blocks, the smallest first."""
    mode: str = ""
    """How the network was set to that mode, and what it draws and writes in evaluation."""

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a lesion, single ones first; `count` says how many blocks are gone."""
        return [
            {"count": len(lesion.removed), **dataclasses.asdict(lesion)}
            for lesion in (*self.blocks, *self.several)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The error without each block (Veit et al. 2016, Figure 3); returns the matplotlib Axes."""
        from deepjax.analysis.residual.residual_figures import draw_lesions

        return draw_lesions(self, ax)

    def plot_several(self, ax: Any = None) -> Any:
        """The error against the number of blocks removed (Veit et al. 2016, Figure 5a); returns the matplotlib Axes."""
        from deepjax.analysis.residual.residual_figures import draw_several

        return draw_several(self, ax)


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
    """Loss and error of the network without each of its residual branches, one at a time, with no training in between.

    batch: as in `forward`. `metric`: the error, (outputs, batch) -> scalar. `removed`: numbers of blocks to remove at once, each in
    `draws` random sets drawn from `seed` (all sets where there are no more). `modules`: paths of modules that keep their
    input's shape, to bypass them instead of deleting branches: so a plain network is compared.
    Raises InputError for a network without residual sums (unless `modules` are named), sums inside nn.scan, unknown modules, those
    that change their input's shape, and counts that do not fit.
    Cost: 1 + blocks + len(removed) x draws forward passes, compiled once for a network and shape; memory of one.
    Source: Veit et al. 2016, sections 4.1 and 4.2.
    """
    model, variables = entry(model, variables)
    places = residual_sites(model, variables, batch, loss, train, modules)
    validate_inputs(model, variables, batch, metric, train, what="metric")
    names = gate_names(places)
    require(isinstance(draws, int) and draws >= 1, "draws", draws, "a number of sets, 1 or more")
    for count in removed:
        require(
            isinstance(count, int) and 1 <= count <= len(names),
            "removed",
            count,
            f"1 to the {len(names)} blocks there are",
        )
    rng = np.random.default_rng(seed)
    single = [(i,) for i in range(len(names))]
    several = [
        chosen for count in sorted(removed) for chosen in _subsets(len(names), count, draws, rng)
    ]
    values: list[tuple[float, float]] = []
    for chosen in ((), *single, *several):
        keep = np.isin(np.arange(len(names)), chosen, invert=True)
        found = jax.device_get(
            _evaluate(
                model, variables, batch, keep, loss=loss, metric=metric, train=train, places=places
            )
        )
        values.append((float(found[0]), float(found[1])))
        if progress:
            progress(len(values), 1 + len(single) + len(several))
    whole = values[0]
    rows = tuple(
        Lesion(tuple(names[i] for i in chosen), *value, value[0] - whole[0], value[1] - whole[1])
        for chosen, value in zip(single + several, values[1:], strict=True)
    )
    return Lesions(
        train,
        "branch" if modules is None else "module",
        *whole,
        rows[: len(single)],
        rows[len(single) :],
        mode_text(model, variables, batch, train),
    )


@dataclasses.dataclass(frozen=True)
class PathLength:
    """All paths that take the branch at exactly `length` sums."""

    length: int
    paths: int
    """How many there are: n over length."""
    sampled: int
    norm: float
    """Mean over the sampled paths of the L2 norm of the loss's gradient by the inputs along one path, all examples together."""
    error: float
    """Standard error of the norm; 0 where all paths were taken, NaN where one was drawn of several."""
    share: float
    """paths x norm over the sum of that over all lengths."""


@dataclasses.dataclass(frozen=True)
class PathLengths:
    """How the gradient is spread over the lengths of paths."""

    train: bool
    sums: tuple[str, ...]
    """Paths of the residual sums in the order of the forward pass."""
    gradient: float
    """L2 norm of the whole gradient by the inputs: that of the sum over all paths, which may cancel."""
    lengths: tuple[PathLength, ...]
    """0 to n branches."""
    mode: str = ""
    """How the network was set to that mode, and what it draws and writes in evaluation."""

    @property
    def effective(self) -> float:
        """Mean length, weighted by share."""
        return sum(row.length * row.share for row in self.lengths)

    @property
    def interval(self) -> tuple[int, int]:
        """Shortest and longest of the middle 95 % of the shares."""
        sums = np.cumsum([row.share for row in self.lengths])
        low, high = np.searchsorted(sums, [0.025, 0.975])
        return int(low), min(int(high), len(self.sums))

    @property
    def paths_inside(self) -> float:
        """Share of all paths whose length lies in the interval."""
        low, high = self.interval
        return sum(row.paths for row in self.lengths[low : high + 1]) / 2 ** len(self.sums)

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a length."""
        return [dataclasses.asdict(row) for row in self.lengths]

    def plot(self, ax: Any = None) -> Any:
        """How many paths have a length, what gradient one carries, and the product (Figure 6 there); returns the Axes."""
        from deepjax.analysis.residual.residual_figures import draw_path_lengths

        return draw_path_lengths(self, ax)


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
    """How long the paths are that the gradient takes through a residual network: the number of paths times what one carries.

    batch: as in `forward`, with inputs of floats. For each length k, `samples` sets of k sums are drawn from `seed` (all sets where
    there are no more); at these the backward pass goes through the branch alone, at all others through the shortcut alone, and
    the forward pass is the network's own. The gradient through all 2^n paths is the whole gradient, as the backward pass is linear.
    Raises InputError for a network without residual sums, sums inside nn.scan, inputs without floats, and where no path carries
    any gradient.
    Cost: at most (n + 1) x samples backward passes, and a forward pass each `chunk` of them, compiled once for a network and shape;
    memory of one forward and `chunk` backward passes. Source: Veit et al. 2016, section 4.3.
    """
    model, variables = entry(model, variables)
    for name, value in {"samples": samples, "chunk": chunk}.items():
        require(isinstance(value, int) and value >= 1, name, value, "1 or more")
    places = _gradient_places(model, variables, batch, loss, train)
    names = gate_names(places)
    rng = np.random.default_rng(seed)
    sets = [_subsets(len(names), length, samples, rng) for length in range(len(names) + 1)]
    taken = np.array([np.isin(np.arange(len(names)), chosen) for chosen in itertools.chain(*sets)])
    passes = np.concatenate(
        [np.ones((1, len(names), 2), bool), np.stack([~taken, taken], axis=-1)]
    )  # the first is all paths
    norms: list[float] = []
    while len(norms) < len(passes):
        part = passes[len(norms) : len(norms) + chunk]
        full = np.concatenate(
            [part, np.repeat(part[-1:], chunk - len(part), axis=0)]
        )  # of one shape, to compile once
        found = jax.device_get(
            _path_norms(model, variables, batch, full, loss=loss, train=train, places=places)
        )
        norms.extend(float(value) for value in found[: len(part)])
        if progress:
            progress(len(norms), len(passes))
    each = np.split(np.array(norms[1:]), np.cumsum([len(group) for group in sets])[:-1])
    return PathLengths(
        train, names, norms[0], _by_length(each), mode_text(model, variables, batch, train)
    )


def path_gradient(
    model: Model,
    variables: Any,
    batch: Batch,
    branches: Sequence[str],
    *,
    loss: Loss = cross_entropy,
    train: bool = False,
) -> tuple[Array, ...]:
    """The loss's gradient along one path: through the branch at the sums of these paths, through the shortcut at all others.

    Returns an array for each input of floats, of its shape; over all 2^n paths they add up to the gradient. Raises InputError as
    `path_lengths`, and for an unknown sum. Cost: one forward and one backward pass. Source: Veit et al. 2016, section 4.3.
    """
    model, variables = entry(model, variables)
    places = _gradient_places(model, variables, batch, loss, train)
    names = gate_names(places)
    for name in branches:
        if name not in names:
            raise unknown_name_error("residual sum", name, names)
    taken = np.isin(names, list(branches))
    passes = np.stack([~taken, taken], axis=-1)
    return _path_gradient(model, variables, batch, passes, loss=loss, train=train, places=places)


def _by_length(norms: list[np.ndarray]) -> tuple[PathLength, ...]:
    longest = len(norms) - 1
    counts = [math.comb(longest, length) for length in range(longest + 1)]
    means = [float(values.mean()) for values in norms]
    lost = [length for length, mean in enumerate(means) if not math.isfinite(mean)]
    if lost or not any(means):
        which = (
            f"paths of {lost[0]} branches carry a gradient that is not finite"
            if lost
            else "no path carries any gradient"
        )
        raise InputError(f"{which} to the inputs; allowed: a network and a loss that have one")
    # Through logarithms: the number of paths is beyond any float from a thousand sums on.
    sizes = np.array(
        [
            math.log(n) + math.log(mean) if mean > 0 else -math.inf
            for n, mean in zip(counts, means, strict=True)
        ]
    )
    shares = np.exp(sizes - sizes.max())
    shares = shares / shares.sum()
    errors = [_standard_error(values, n) for values, n in zip(norms, counts, strict=True)]
    return tuple(
        PathLength(
            length,
            counts[length],
            len(norms[length]),
            means[length],
            errors[length],
            float(shares[length]),
        )
        for length in range(longest + 1)
    )


def _standard_error(values: np.ndarray, paths: int) -> float:
    if len(values) == paths:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _subsets(n: int, size: int, draws: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """All sets of that size where there are at most `draws`, else as many drawn independently."""
    if math.comb(n, size) <= draws:
        return list(itertools.combinations(range(n), size))
    return [tuple(int(i) for i in sorted(rng.choice(n, size, replace=False))) for _ in range(draws)]


@functools.partial(jax.jit, static_argnames=("model", "loss", "metric", "train", "places"))
def _evaluate(
    model: Model,
    variables: Any,
    batch: Batch,
    keep: Any,
    *,
    loss: Loss,
    metric: Loss,
    train: bool,
    places: tuple[Site, ...],
) -> tuple[Array, Array]:
    with ablate_branches(places, keep):
        outputs, _ = run(model, variables, batch, train)
    return loss(outputs, batch).astype(jnp.float32), metric(outputs, batch).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "places"))
def _path_norms(
    model: Model,
    variables: Any,
    batch: Batch,
    passes: Any,
    *,
    loss: Loss,
    train: bool,
    places: tuple[Site, ...],
) -> Array:
    """passes: (paths, sums, 2) booleans, whether the shortcut's and the branch's gradient pass -> (paths,)."""

    def norm(passes: Array) -> Array:
        gradients = _gradient(model, variables, batch, passes, loss, train, places)
        flat = jnp.concatenate([jnp.ravel(gradient).astype(jnp.float32) for gradient in gradients])
        largest = jnp.max(
            jnp.abs(flat)
        )  # long paths carry 1e-25 and less, whose square float32 does not hold
        return largest * jnp.linalg.norm(flat / jnp.where(largest > 0, largest, 1))

    return jax.vmap(norm)(passes)


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "places"))
def _path_gradient(
    model: Model,
    variables: Any,
    batch: Batch,
    passes: Any,
    *,
    loss: Loss,
    train: bool,
    places: tuple[Site, ...],
) -> tuple[Array, ...]:
    return _gradient(model, variables, batch, passes, loss, train, places)


def _gradient(
    model: Model,
    variables: Any,
    batch: Batch,
    passes: Any,
    loss: Loss,
    train: bool,
    places: tuple[Site, ...],
) -> tuple[Array, ...]:
    """By the inputs that are floats. passes: (sums, 2)."""
    inputs = inputs_of(batch)

    def value(floats: tuple[Array, ...]) -> Array:
        rest = iter(floats)
        given = tuple(next(rest) if _is_floating(each) else each for each in inputs)
        with route_gradient(places, passes):
            outputs, _ = run(model, variables, (given, None), train)
        return loss(outputs, batch)  # what a loss takes from the inputs themselves is on no path

    return jax.grad(value)(tuple(jnp.asarray(each) for each in inputs if _is_floating(each)))


def _gradient_places(
    model: Model, variables: Any, batch: Batch, loss: Loss, train: bool
) -> tuple[Site, ...]:
    places = residual_sites(model, variables, batch, loss, train)
    dtypes = ", ".join(str(jnp.result_type(each)) for each in inputs_of(batch))
    require(
        any(map(_is_floating, inputs_of(batch))), "inputs", dtypes, "floats, which have gradients"
    )
    return places


def _is_floating(value: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.floating))
