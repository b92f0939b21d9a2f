"""Shattered gradients: how alike the gradients at different inputs are.

Balduzzi, Frean, Leary, Lewis, Ma and McWilliams, "The shattered gradients problem: if resnets are the answer, then what is the
question?", 2017 (arXiv:1702.08591). The gradient is that of the output with respect to the input, example by example.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.module import (
    Model,
    entry,
    has_batch_norm,
    mode_text,
    run,
    validate_inputs,
)
from deepjax.errors import require

Output = Callable[[Any], Array]
"""What the network returns -> the scalar whose gradient is taken: a sum over examples, none of which moves another's term."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shattering:
    """How alike the gradients at a batch's inputs are, over all pairs of examples."""

    train: bool
    """Batch norm used the whole batch's statistics, as a fixed scale and shift; else the running ones. Dropout is off."""
    examples: int
    dead: int
    """Examples whose gradient is 0, which are left out of the means."""
    cosine: float
    """Mean over pairs of the cosine of their gradients."""
    correlation: float
    """The same with each gradient centred: its own mean over the input's entries taken off."""
    cosines: np.ndarray
    """(examples, examples): every pair's cosine."""
    mode: str = ""
    """How the network was set to that mode, and what it draws and writes in evaluation."""

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict of all numbers but the matrix."""
        return [
            {
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name != "cosines"
            }
        ]

    def plot(self, ax: Any = None) -> Any:
        """Histogram of the pairs' cosines with its mean; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        pairs = self.cosines[np.triu_indices(len(self.cosines), 1)]
        pairs = pairs[~np.isnan(pairs)]
        with canvas(ax, 5.2, 3.8) as axes:
            axes.hist(pairs, bins=np.linspace(-1, 1, 41).tolist(), color=COLORS[0], alpha=0.8)
            axes.axvline(self.cosine, color=COLORS[1])
            axes.annotate(
                f"mean {self.cosine:.3f}", (self.cosine, 0.97), (5, 0), xycoords=("data", "axes fraction"),
                textcoords="offset points", color=COLORS[1], va="top",
            )  # fmt: skip
            dead = f", {self.dead} of them without a gradient" if self.dead else ""
            axes.set(
                title=f"Gradients at {self.examples} inputs{dead}",
                xlabel="cosine of two inputs' gradients",
                ylabel="pairs",
            )
        return axes


@dataclasses.dataclass(frozen=True, eq=False)
class GradientLine:
    """The derivative of the output along a straight line of inputs, and its autocorrelation."""

    train: bool
    """Batch norm used the statistics of all points of the line, as a fixed scale and shift; else the running ones."""
    spacing: float
    """Distance between neighbouring points, in the input's units."""
    gradient: np.ndarray
    """(points,): derivative of the output with respect to the distance along the line."""
    autocorrelation: np.ndarray
    """(points // 2 + 1,): at lags 0, 1, ... points; 1 at lag 0. NaN for a constant gradient."""
    mode: str = ""
    """How the network was set to that mode, and what it draws and writes in evaluation."""

    @property
    def white(self) -> float:
        """Autocorrelations of white noise lie within plus and minus this 95 % of the time."""
        return 1.96 / math.sqrt(len(self.gradient))

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a lag."""
        return [
            {"lag": lag, "distance": lag * self.spacing, "autocorrelation": float(value)}
            for lag, value in enumerate(self.autocorrelation)
        ]

    def plot(self, ax: Any = None) -> Any:
        """Autocorrelation against the lag, with white noise's band; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        rows = self.rows()
        with canvas(ax, 5.2, 3.8) as axes:
            axes.plot(
                [row["lag"] for row in rows],
                [row["autocorrelation"] for row in rows],
                color=COLORS[0],
            )
            axes.axhspan(-self.white, self.white, color="0.5", alpha=0.2, linewidth=0)
            axes.text(
                len(rows) - 1,
                self.white,
                "white noise (95 %) ",
                color="0.4",
                ha="right",
                va="bottom",
            )
            outside = np.abs(self.autocorrelation[1:]) > self.white
            length = int(np.argmin(outside)) if not outside.all() else len(outside)
            alike = f"Gradients stay alike for {length} of {len(self.gradient)} points"
            constant = np.isnan(self.autocorrelation).all()
            axes.set(
                title="The gradient is the same at all points" if constant else alike,
                xlabel="lag (points)",
            )
            axes.set(
                ylabel="autocorrelation",
                ylim=(min(-0.4, float(np.nanmin(self.autocorrelation, initial=0))), 1.05),
            )
        return axes


def shattering(
    model: Model, variables: Any, inputs: Array, *, train: bool = True, output: Output = jnp.sum
) -> Shattering:
    """Mean pairwise correlation of d output / d input over the examples of a batch.

    inputs: floats (examples, ...). With train=True batch norm takes its statistics from the whole batch and, as in the paper's
    analysis, is a fixed scale and shift in the backward pass: through the statistics every example would move every other's
    output, and their gradients would cancel in the mean. The statistics are those that the network's running averages
    move towards (of groups their mean), so a normalisation over the batch that keeps none is not seen. Dropout is off. `output`:
    a function of what the network returns, such as its sum; pass the same function again, for a new lambda compiles anew.
    Raises InputError for inputs that do not fit or are no floats, fewer than two, and an output that is no scalar.
    Cost: two forward passes (one with train=False) and one backward, compiled once for a network and shape; memory as training.
    Source: Balduzzi et al. 2017, section 3.
    """
    model, variables = entry(model, variables)
    _check(model, variables, inputs, output)
    require(len(inputs) >= 2, "inputs", f"{len(inputs)} examples", "two or more")
    gradients = jax.device_get(
        _gradients(model, variables, inputs, output=output, train=train)
    ).reshape(len(inputs), -1)
    gradients = np.asarray(gradients, np.float64)
    dead = int((gradients == 0).all(1).sum())
    cosines = _cosines(gradients)
    centred = _cosines(gradients - gradients.mean(1, keepdims=True))
    return Shattering(
        train,
        len(inputs),
        dead,
        _mean_pair(cosines),
        _mean_pair(centred),
        cosines,
        _mode(model, variables, inputs, train),
    )


def gradient_line(
    model: Model,
    variables: Any,
    start: Array,
    end: Array,
    points: int,
    *,
    train: bool = True,
    output: Output = jnp.sum,
) -> GradientLine:
    """Autocorrelation of the gradient along a line of inputs: brown noise of shallow networks, white noise of deep plain ones.

    start, end: one input each, floats without the batch axis; `points` inputs lie evenly from one to the other. The gradient is
    the derivative along the line, for inputs of one number the gradient itself. Batch norm and `output` as in `shattering`.
    Raises InputError for ends of different shapes or at one place, fewer than three points, and inputs that do not fit.
    Cost: as `shattering` with `points` examples. Source: Balduzzi et al. 2017, section 2 and Figures 1 and 2 (256 points, -2 to 2).
    """
    model, variables = entry(model, variables)
    require(isinstance(points, int) and points >= 3, "points", points, "three or more")
    start, end = jnp.asarray(start), jnp.asarray(end)
    require(
        start.shape == end.shape, "end", f"of shape {end.shape}", f"the start's shape {start.shape}"
    )
    length = float(jnp.sqrt(jnp.sum(jnp.square((end - start).astype(jnp.float32)))))
    require(length > 0, "end", "the start itself", "another input")
    inputs = jnp.linspace(start, end, points)
    _check(model, variables, inputs, output)
    gradients = jax.device_get(
        _gradients(model, variables, inputs, output=output, train=train)
    ).reshape(points, -1)
    along = np.asarray(gradients, np.float64) @ (
        np.asarray(end - start, np.float64).ravel() / length
    )
    return GradientLine(
        train,
        length / (points - 1),
        along,
        _autocorrelation(along, points // 2),
        _mode(model, variables, inputs, train),
    )


def _check(model: Model, variables: Any, inputs: Any, output: Output) -> None:
    fits = (
        hasattr(inputs, "dtype") and jnp.issubdtype(inputs.dtype, jnp.floating) and inputs.ndim >= 1
    )
    require(
        fits,
        "inputs",
        getattr(inputs, "dtype", type(inputs).__name__),
        "one array of floats, (examples, ...)",
    )
    for train in (True, False):
        validate_inputs(model, variables, (inputs, None), _OfOutputs(output), train)


@dataclasses.dataclass(frozen=True)
class _OfOutputs:
    """The output as a loss; equal for equal functions, so that a check is made once."""

    output: Output

    def __call__(self, outputs: Any, batch: Any) -> Array:
        return self.output(outputs)


def _mode(model: Model, variables: Any, inputs: Any, train: bool) -> str:
    """The network runs in evaluation; with `train` the batch's statistics stand for the running ones."""
    fixed = (
        "; batch norm by the inputs' own statistics, held fixed"
        if train and has_batch_norm(variables)
        else ""
    )
    return mode_text(model, variables, (inputs, None), False) + fixed


@functools.partial(jax.jit, static_argnames=("model", "output", "train"))
def _gradients(
    model: Model, variables: Any, inputs: Array, *, output: Output, train: bool
) -> Array:
    fixed = (
        _with_statistics_of(model, variables, inputs)
        if train and has_batch_norm(variables)
        else variables
    )
    return jax.grad(lambda x: output(run(model, fixed, (x, None), False)[0]))(inputs).astype(
        jnp.float32
    )


def _with_statistics_of(model: Model, variables: Any, inputs: Array) -> dict[str, Any]:
    """The variables with the inputs' statistics for running ones.

    A running average moves from s to m s + (1 - m) b. At s = 0 that is (1 - m) b, and its derivative by s is m: so the batch's b is
    had without knowing how any module normalises. What does not move (m = 1) stays.
    """
    old = variables["batch_stats"]

    def moved(statistics: Any) -> Any:
        with nn.intercept_methods(_without_dropout):
            return run(model, {**variables, "batch_stats": statistics}, (inputs, None), True)[1][
                "batch_stats"
            ]

    zeros, ones = jax.tree.map(jnp.zeros_like, old), jax.tree.map(jnp.ones_like, old)
    new, momentum = jax.jvp(moved, (zeros,), (ones,))

    def of_batch(old: Array, new: Array, momentum: Array) -> Array:
        return jnp.where(momentum == 1, old, new / jnp.where(momentum == 1, 1, 1 - momentum))

    return {**variables, "batch_stats": jax.tree.map(of_batch, old, new, momentum)}


def _without_dropout(
    function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
) -> Any:
    return (
        arguments[0]
        if isinstance(context.module, nn.Dropout) and arguments
        else function(*arguments, **keywords)
    )


def _cosines(gradients: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    units = np.divide(gradients, norms, out=np.full_like(gradients, np.nan), where=norms > 0)
    return units @ units.T


def _mean_pair(cosines: np.ndarray) -> float:
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    alive = pairs[~np.isnan(pairs)]
    return float(alive.mean()) if len(alive) else math.nan


def _autocorrelation(values: np.ndarray, lags: int) -> np.ndarray:
    centred = values - values.mean()
    total = float(centred @ centred)
    if total == 0:
        return np.full(lags + 1, np.nan)
    return (
        np.array([centred[: len(centred) - lag] @ centred[lag:] for lag in range(lags + 1)]) / total
    )
