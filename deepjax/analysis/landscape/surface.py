"""The loss around a network: along a line, between two networks, and on a plane.

Goodfellow, Vinyals and Saxe, "Qualitatively characterizing neural network optimization problems", 2015 (arXiv:1412.6544): lines.
Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018 (arXiv:1712.09913): filter
normalisation and planes. Frankle, Dziugaite, Roy and Carbin, "Linear mode connectivity and the lottery ticket hypothesis", 2020
(arXiv:1912.05671) and Entezari, Sedghi, Saukh and Neyshabur, "The role of permutation invariance in linear mode connectivity of
neural networks", 2022 (arXiv:2110.06296): barriers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from deepjax.analysis.core.batch import Batches, stack
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    base_key,
    cross_entropy,
    entry,
    has_batch_norm,
    run,
    validate_inputs,
)
from deepjax.analysis.core.params import (
    by_path,
    check_like,
    filled,
    from_real,
    real_pairs,
    sum_dtype,
    widened,
)
from deepjax.analysis.landscape.trajectory import Trajectory
from deepjax.errors import require

Statistics = Literal["running", "batch"]
Progress = Callable[[int, int], None] | None
"""Called with (points done, points in all)."""
ROUNDING = 1e-6
"""A loss in float32 is known to about this part of itself."""


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """The loss along a straight line of parameters."""

    bn: Statistics
    """"running": evaluation, with the stored batch statistics, between two networks interpolated as the parameters are;
    "batch": training, with each batch's own, recomputed at every point."""
    normalised: bool
    """Whether the network keeps batch statistics at all."""
    examples: int
    between: bool
    """Whether it runs from one network (0) to another (1), rather than along a direction."""
    at: np.ndarray
    """(points,): multiples of the direction, or the share of the way."""
    loss: np.ndarray
    """(points,)."""
    accuracy: np.ndarray | None
    """(points,), where labels are integers and outputs are one number a class; else None."""

    @property
    def barrier(self) -> float:
        """Largest height of the loss above the straight line between both ends' losses, 0 or more; NaN along a direction.

        Source: Entezari et al. 2022, definition 1; Frankle et al. 2020, section 2, who take the error and the ends' mean.
        """
        return float(self._heights(self.loss).max())

    @property
    def barrier_at(self) -> float:
        """Where between the ends, as a share of the way."""
        heights = self._heights(self.loss)
        return math.nan if np.isnan(heights).any() else float(self.at[heights.argmax()])

    @property
    def error_barrier(self) -> float:
        """The same of the share of wrong answers; NaN without accuracy."""
        return math.nan if self.accuracy is None else float(self._heights(1 - self.accuracy).max())

    def _heights(self, values: np.ndarray) -> np.ndarray:
        """(points,): above the straight line from 0 to 1; minus infinity beyond it."""
        if not self.between:
            return np.full(len(values), math.nan)
        first, last = (values[np.abs(self.at - end).argmin()] for end in (0, 1))
        heights = values - ((1 - self.at) * first + self.at * last)
        return np.where((self.at >= -1e-6) & (self.at <= 1 + 1e-6), heights, -math.inf)

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a point."""
        accuracy = [None] * len(self.at) if self.accuracy is None else self.accuracy.tolist()
        columns = zip(self.at.tolist(), self.loss.tolist(), accuracy, strict=True)
        return [{"at": at, "loss": loss, "accuracy": share} for at, loss, share in columns]

    def plot(self, ax: Any = None) -> Any:
        """Loss, and accuracy on an axis to the right, along the line; returns the matplotlib Axes."""
        from deepjax.analysis.landscape.landscape_figures import draw_line

        return draw_line(self, ax)


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """The loss on a plane of parameters, with the network at (0, 0)."""

    bn: Statistics
    """As of `Line`."""
    normalised: bool
    examples: int
    x: np.ndarray
    """(columns,): multiples of the first direction."""
    y: np.ndarray
    """(rows,): multiples of the second."""
    loss: np.ndarray
    """(rows, columns)."""
    accuracy: np.ndarray | None
    """(rows, columns), or None as of `Line`."""
    path: Trajectory | None
    """Whose plane it is, or None."""

    @property
    def concave(self) -> float:
        """Share of the grid's inner points at which the loss curves down in some direction of the plane; NaN without finite ones.

        By central differences; curvatures within rounding of the loss do not count. It is of the plane only: the Hessian can have
        negative eigenvalues where the plane shows none (Li et al. 2018, section 6).
        """
        loss, across, up = self.loss, float(self.x[1] - self.x[0]), float(self.y[1] - self.y[0])
        middle = loss[1:-1, 1:-1]
        with np.errstate(invalid="ignore"):
            xx = (loss[1:-1, 2:] - 2 * middle + loss[1:-1, :-2]) / across**2
            yy = (loss[2:, 1:-1] - 2 * middle + loss[:-2, 1:-1]) / up**2
            xy = (loss[2:, 2:] - loss[2:, :-2] - loss[:-2, 2:] + loss[:-2, :-2]) / (4 * across * up)
            least = (xx + yy) / 2 - np.hypot((xx - yy) / 2, xy)
        noise = 4 * ROUNDING * np.abs(middle) * (1 / across**2 + 1 / up**2)
        known = np.isfinite(least)
        return float((least < -noise)[known].mean()) if known.any() else math.nan

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a point, row by row."""
        x, y = (values.ravel().tolist() for values in np.meshgrid(self.x, self.y))
        accuracy = [None] * len(x) if self.accuracy is None else self.accuracy.ravel().tolist()
        columns = zip(x, y, self.loss.ravel().tolist(), accuracy, strict=True)
        return [{"x": x, "y": y, "loss": loss, "accuracy": share} for x, y, loss, share in columns]

    def plot(self, ax: Any = None) -> Any:
        """Contours of the loss, logarithmic where its range is wide, and the path on them; returns the matplotlib Axes."""
        from deepjax.analysis.landscape.landscape_figures import draw_plane

        return draw_plane(self, ax)


def loss_line(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    direction: Any,
    *,
    at: Any = None,
    loss: Loss = cross_entropy,
    bn: Statistics = "running",
    chunk: int = 1,
    progress: Progress = None,
) -> Line:
    """Loss and accuracy at the parameters plus multiples of a direction, a tree like them.

    at: (points,) multiples, default 51 from -1 to 1. `bn` as of `Line`; in training dropout's masks are fixed (key 0, one mask a
    batch). `chunk`: points that the device computes at once; pass the same loss again, for a new lambda compiles anew.
    Raises InputError for a batch, direction or points that do not fit. Compiled once for a network, loss, shape and chunk.
    Cost: `points` passes over the data, forward only; memory chunk x (parameters + activations of a batch), and the data.
    Source: Goodfellow et al. 2015, section 3; Li et al. 2018, section 3.
    """
    points = _points("at", at if at is not None else np.linspace(-1, 1, 51))
    model, variables = entry(model, variables)
    task = _prepare(model, variables, batch, loss, bn, chunk, progress)
    found = _evaluate(
        task,
        variables,
        _from(variables["params"], direction=direction),
        np.stack([np.ones_like(points), points], axis=1),
    )
    return Line(bn, task.normalised, task.examples, False, points, *found)


def linear_interpolation(
    model: nn.Module,
    variables_a: Any,
    variables_b: Any,
    batch: Batches,
    *,
    at: Any = None,
    loss: Loss = cross_entropy,
    bn: Statistics = "running",
    chunk: int = 1,
    progress: Progress = None,
) -> Line:
    """Loss and accuracy on the straight line between two networks, and the barrier that it has to climb.

    at: shares of the way from a (0) to b (1), both among them; default 25 from 0 to 1. With bn="running" batch statistics are
    interpolated as the parameters are, and fit the networks on the way badly; "batch" recomputes them. Other collections are a's.
    Other arguments, errors and cost as of `loss_line`.
    Source: Goodfellow et al. 2015, section 3; Frankle et al. 2020, section 2; Entezari et al. 2022, definition 1.
    """
    points = _points("at", at if at is not None else np.linspace(0, 1, 25))
    require(
        all(np.isclose(points, end, atol=1e-6).any() for end in (0, 1)),
        "at",
        "without 0 or 1",
        "points with both ends, 0 and 1",
    )
    (model, variables_a), (_, variables_b) = entry(model, variables_a), entry(model, variables_b)
    task = _prepare(model, variables_a, batch, loss, bn, chunk, progress)
    kept = [name for name in ("params", "batch_stats") if name in variables_a]
    require(
        all(name in variables_b for name in kept),
        "variables_b",
        f"with {sorted(variables_b)}",
        f"with {kept}, as variables_a",
    )
    first, last = (
        {name: variables[name] for name in kept} for variables in (variables_a, variables_b)
    )
    ends = tuple(filled(first, check_like("variables_b", end, first)) for end in (first, last))
    found = _evaluate(task, variables_a, ends, np.stack([1 - points, points], axis=1))
    return Line(bn, task.normalised, task.examples, True, points, *found)


def loss_plane(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    x: Any,
    y: Any,
    *,
    grid: tuple[Any, Any] | None = None,
    path: Trajectory | None = None,
    loss: Loss = cross_entropy,
    bn: Statistics = "running",
    chunk: int = 1,
    progress: Progress = None,
) -> Plane:
    """Loss and accuracy at the parameters plus multiples of two directions, trees like them.

    grid: multiples of x and of y, each three or more, rising evenly; default 51 from -1 to 1, or what holds the path.
    path: `loss_plane(model, variables, batch, *path.directions, path=path)` is the plane of a trajectory that ends at `variables`.
    Other arguments, errors and memory as of `loss_line`. Cost: rows x columns passes over the data, forward only.
    Source: Li et al. 2018, sections 3 and 7. Their map of the Hessian's eigenvalues (section 6) is not drawn here.
    """
    whole = grid or (path.grid() if path else (np.linspace(-1, 1, 51), np.linspace(-1, 1, 51)))
    require(
        len(whole) == 2, "grid", f"of {len(whole)} parts", "a pair, the points along x and along y"
    )
    across, up = _even("grid's x", whole[0]), _even("grid's y", whole[1])
    model, variables = entry(model, variables)
    task = _prepare(model, variables, batch, loss, bn, chunk, progress)
    params = variables["params"]
    if path:
        last = check_like("path", path.origin, params)
        same = all(np.array_equal(last[name], leaf) for name, leaf in by_path(params).items())
        require(
            same, "variables", "not the path's last point", "the variables at which the path ends"
        )
    columns, rows = (values.ravel() for values in np.meshgrid(across, up))
    weights = np.stack([np.ones_like(columns), columns, rows], axis=1)
    losses, accuracy = _evaluate(task, variables, _from(params, x=x, y=y), weights)
    shape = (len(up), len(across))
    shares = None if accuracy is None else accuracy.reshape(shape)
    return Plane(
        bn, task.normalised, task.examples, across, up, losses.reshape(shape), shares, path
    )


@dataclasses.dataclass(frozen=True)
class _Task:
    model: nn.Module
    loss: Loss
    train: bool
    batches: Any
    """Stacked along a leading axis."""
    examples: int
    normalised: bool
    chunk: int
    progress: Progress


def _prepare(
    model: nn.Module,
    variables: Any,
    batch: Batches,
    loss: Loss,
    bn: Statistics,
    chunk: int,
    progress: Progress,
) -> _Task:
    """Raises InputError for what does not fit, before anything is computed."""
    require(bn in ("running", "batch"), "bn", bn, "'running', 'batch'")
    require(isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of points, 1 or more")
    data = stack(batch)
    validate_inputs(model, variables, data.first, loss, bn == "batch", every=data.stacked)
    return _Task(
        model,
        loss,
        bn == "batch",
        data.stacked,
        data.examples,
        has_batch_norm(variables),
        chunk,
        progress,
    )


def _from(params: Any, **directions: Any) -> tuple[dict[str, Any], ...]:
    """The parameters and the directions, as trees of one structure."""
    trees = {"": params, **directions}.items()
    return tuple({"params": filled(params, check_like(name, tree, params))} for name, tree in trees)


def _evaluate(
    task: _Task, variables: Any, trees: Any, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """(points,) losses and accuracies. trees: by collection. weights: (points, trees).

    A host loop over chunks, so that progress shows.
    """
    points, chunk = len(weights), min(task.chunk, len(weights))
    padded = np.pad(weights, ((0, -points % chunk), (0, 0)), mode="edge").astype(
        sum_dtype(*jax.tree.leaves(trees[0]))
    )
    found = []
    for start in range(0, len(padded), chunk):
        part = _losses(
            variables,
            trees,
            padded[start : start + chunk],
            task.batches,
            model=task.model,
            loss=task.loss,
            train=task.train,
        )
        found.append(part)
        if task.progress:
            jax.block_until_ready(part)
            task.progress(min(start + chunk, points), points)
    losses, accuracies = zip(*jax.device_get(found), strict=True)
    known = accuracies[0] is not None
    return np.concatenate(losses)[:points].astype(float), np.concatenate(accuracies)[
        :points
    ].astype(float) if known else None


@functools.partial(jax.jit, static_argnames=("model", "loss", "train"))
def _losses(
    variables: Any,
    trees: tuple[Any, ...],
    weights: Array,
    batches: Any,
    *,
    model: nn.Module,
    loss: Loss,
    train: bool,
) -> tuple[Array, Array | None]:
    """(points,) mean losses, and accuracies or None, at the weighted sums of the trees. weights: (points, trees)."""

    def at(weights: Array) -> tuple[Array, Array | None]:
        moved = {**variables, **jax.tree.map(lambda *leaves: _mixed(weights, leaves), *trees)}

        def on(part: Any) -> tuple[Array, Array | None]:
            index, batch = part
            outputs, _ = run(model, moved, batch, train, base_key(model, index))
            return widened(loss(outputs, batch)), _accuracy(outputs, batch)

        count = jax.tree.leaves(batches)[0].shape[0]
        return jax.tree.map(jnp.mean, lax.map(on, (jnp.arange(count), batches)))

    return lax.map(at, weights) if weights.shape[0] == 1 else jax.vmap(at)(weights)


def _mixed(weights: Array, leaves: tuple[Array, ...]) -> Array:
    first = leaves[0]
    if not jnp.issubdtype(first.dtype, jnp.inexact):
        return first
    terms = [
        weight * real_pairs(leaf).astype(weights.dtype)
        for weight, leaf in zip(weights, leaves, strict=True)
    ]
    return from_real(functools.reduce(jnp.add, terms), first).astype(first.dtype)


def _accuracy(outputs: Any, batch: Batch) -> Array | None:
    labels = (
        batch.get("label") if isinstance(batch, Mapping) else batch[1] if len(batch) > 1 else None
    )
    if (
        not isinstance(outputs, Array)
        or not isinstance(labels, Array)
        or not jnp.issubdtype(labels.dtype, jnp.integer)
    ):
        return None
    if outputs.ndim < 1 or outputs.shape[:-1] != labels.shape:
        return None
    return jnp.mean(
        (jnp.argmax(outputs, axis=-1).astype(labels.dtype) == labels).astype(jnp.float32)
    )


def _points(name: str, given: Any) -> np.ndarray:
    points = np.asarray(given, float)
    fits = points.ndim == 1 and len(points) >= 2 and np.isfinite(points).all()
    require(bool(fits), name, f"of shape {points.shape}", "two or more finite numbers in one row")
    return points


def _even(name: str, given: Any) -> np.ndarray:
    points = _points(name, given)
    steps = np.diff(points)
    fits = len(points) >= 3 and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-3)
    require(
        bool(fits),
        name,
        f"{len(points)} points from {points[0]:g} to {points[-1]:g}",
        "three or more that rise evenly",
    )
    return points
