"""Shattered gradients: how similar the gradients at different inputs are.

Balduzzi, Frean, Leary, Lewis, Ma and McWilliams, "The shattered gradients problem: if resnets are
the answer, then what is the question?", 2017 (arXiv:1702.08591). The gradient is that of the output
with respect to the input, example by example.
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
    apply_module,
    entry,
    has_batch_norm,
    mode_text,
    validate_inputs,
)
from deepjax.errors import require

Output = Callable[[Any], Array]
"""The network's output -> the scalar to differentiate: a sum over examples that do not interact."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shattering:
    """Similarity of the gradients at a batch's inputs, over all pairs of examples."""

    train: bool
    """Whether batch norm used the batch's statistics, as a fixed scale and shift; else the running
    ones. Dropout is off."""
    examples: int
    zero_gradients: int
    """Number of examples whose gradient is 0; the means exclude them."""
    cosine: float
    """Mean over pairs of the cosine of their gradients."""
    correlation: float
    """The same with each gradient centred by its own mean over the input's entries."""
    cosines: np.ndarray
    """(examples, examples): the cosine of each pair."""
    mode: str = ""
    """How the network was set to that mode, and what it samples and writes in evaluation."""

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
        zero = f", {self.zero_gradients} of them without a gradient" if self.zero_gradients else ""
        title = f"Gradients at {self.examples} inputs{zero}"
        with canvas(ax, 5.2, 3.8) as axes:
            axes.hist(pairs, bins=np.linspace(-1, 1, 41).tolist(), color=COLORS[0], alpha=0.8)
            axes.axvline(self.cosine, color=COLORS[1])
            axes.annotate(
                f"mean {self.cosine:.3f}",
                xy=(self.cosine, 0.97),
                xycoords=("data", "axes fraction"),
                xytext=(5, 0),
                textcoords="offset points",
                color=COLORS[1],
                va="top",
            )
            axes.set(title=title, xlabel="cosine of two inputs' gradients", ylabel="pairs")
        return axes


@dataclasses.dataclass(frozen=True, eq=False)
class GradientLine:
    """The derivative of the output along a straight line of inputs, and its autocorrelation."""

    train: bool
    """Whether batch norm used the statistics of all points, as a fixed scale and shift; else the
    running ones."""
    spacing: float
    """Distance between neighbouring points, in the input's units."""
    gradient: np.ndarray
    """(points,): derivative of the output with respect to the distance along the line."""
    autocorrelation: np.ndarray
    """(points // 2 + 1,): at lags 0, 1, ... points; 1 at lag 0. NaN for a constant gradient."""
    mode: str = ""
    """How the network was set to that mode, and what it samples and writes in evaluation."""

    @property
    def white_noise_bound(self) -> float:
        """Autocorrelations of white noise are within this of 0 in 95 % of cases."""
        return 1.96 / math.sqrt(len(self.gradient))

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per lag."""
        return [
            {"lag": lag, "distance": lag * self.spacing, "autocorrelation": float(value)}
            for lag, value in enumerate(self.autocorrelation)
        ]

    def plot(self, ax: Any = None) -> Any:
        """Autocorrelation against the lag, with the band of white noise; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        values, bound = self.autocorrelation, self.white_noise_bound
        outside = np.abs(values[1:]) > bound
        length = int(np.argmin(outside)) if not outside.all() else len(outside)
        title = f"Gradients stay alike for {length} of {len(self.gradient)} points"
        if np.isnan(values).all():
            title = "The gradient is the same at all points"
        last, label = len(values) - 1, "white noise (95 %) "
        bottom = min(-0.4, float(np.nanmin(values, initial=0)))
        with canvas(ax, 5.2, 3.8) as axes:
            axes.plot(range(len(values)), values, color=COLORS[0])
            axes.axhspan(-bound, bound, color="0.5", alpha=0.2, linewidth=0)
            axes.text(last, bound, label, color="0.4", ha="right", va="bottom")
            axes.set(title=title, xlabel="lag (points)")
            axes.set(ylabel="autocorrelation", ylim=(bottom, 1.05))
        return axes


def shattering(
    model: Model, variables: Any, inputs: Array, *, train: bool = True, output: Output = jnp.sum
) -> Shattering:
    """Mean pairwise correlation of d output / d input over the examples of a batch.

    inputs: floats (examples, ...). With train=True batch norm uses the statistics of the batch and,
    as in the paper's analysis, is a fixed scale and shift in the backward pass: through the
    statistics every example would influence every other's output, and their gradients would cancel
    in the mean. The statistics are those that the network's running averages approach (for groups
    their mean), so a normalisation over the batch without running averages is not included. Dropout
    is off. `output`: a function of the network's output, such as its sum; reuse the same function
    object, since a new lambda triggers recompilation.
    Raises InputError for inputs that do not fit or are not floats, fewer than two, and an output
    that is not a scalar.
    Cost: two forward passes (one with train=False) and one backward, compiled once per network and
    shape; memory as training.
    Source: Balduzzi et al. 2017, section 3.
    """
    model, variables = entry(model, variables)
    _check(model, variables, inputs, output)
    require(len(inputs) >= 2, "inputs", f"{len(inputs)} examples", "two or more")
    gradients = _flat_gradients(model, variables, inputs, output, train)
    cosines = _cosines(gradients)
    centred = _cosines(gradients - gradients.mean(1, keepdims=True))
    return Shattering(
        train=train,
        examples=len(inputs),
        zero_gradients=int((gradients == 0).all(1).sum()),
        cosine=_pair_mean(cosines),
        correlation=_pair_mean(centred),
        cosines=cosines,
        mode=_mode(model, variables, inputs, train),
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
    """Autocorrelation of the gradient along a line of inputs.

    It resembles brown noise in shallow networks, white noise in deep plain ones. start, end: one
    input each, floats without the batch axis; `points` inputs lie evenly between them. The gradient
    is the derivative along the line; for inputs of one number the gradient itself. Batch norm and
    `output` as in `shattering`.
    Raises InputError for ends of different shapes or at one point, fewer than three points, and
    inputs that do not fit.
    Cost: as `shattering` with `points` examples.
    Source: Balduzzi et al. 2017, section 2 and Figures 1 and 2 (256 points, -2 to 2).
    """
    model, variables = entry(model, variables)
    require(isinstance(points, int) and points >= 3, "points", points, "three or more")
    start, end = jnp.asarray(start), jnp.asarray(end)
    allowed = f"the start's shape {start.shape}"
    require(start.shape == end.shape, "end", f"of shape {end.shape}", allowed)
    length = float(jnp.sqrt(jnp.sum(jnp.square((end - start).astype(jnp.float32)))))
    require(length > 0, "end", "the start itself", "another input")
    inputs = jnp.linspace(start, end, points)
    _check(model, variables, inputs, output)
    direction = np.asarray(end - start, np.float64).ravel() / length
    gradient = _flat_gradients(model, variables, inputs, output, train) @ direction
    return GradientLine(
        train=train,
        spacing=length / (points - 1),
        gradient=gradient,
        autocorrelation=autocorrelation(gradient, points // 2),
        mode=_mode(model, variables, inputs, train),
    )


def autocorrelation(values: np.ndarray, lags: int) -> np.ndarray:
    """Autocorrelation at lags 0 to `lags`, 1 at lag 0; NaN for constant values."""
    centred = values - values.mean()
    total = float(centred @ centred)
    if total == 0:
        return np.full(lags + 1, np.nan)
    products = [centred[: len(centred) - lag] @ centred[lag:] for lag in range(lags + 1)]
    return np.array(products) / total


def _check(model: Model, variables: Any, inputs: Any, output: Output) -> None:
    is_array = hasattr(inputs, "dtype")
    fits = is_array and jnp.issubdtype(inputs.dtype, jnp.floating) and inputs.ndim >= 1
    given = inputs.dtype if is_array else type(inputs).__name__
    require(fits, "inputs", given, "one array of floats, (examples, ...)")
    for train in (True, False):
        validate_inputs(model, variables, (inputs, None), _OfOutputs(output), train)


@dataclasses.dataclass(frozen=True)
class _OfOutputs:
    """The output as a loss; equal for equal functions, so that a check is cached."""

    output: Output

    def __call__(self, outputs: Any, batch: Any) -> Array:
        return self.output(outputs)


def _mode(model: Model, variables: Any, inputs: Any, train: bool) -> str:
    """The mode as text: evaluation, where `train` replaces the running statistics."""
    mode = mode_text(model, variables, (inputs, None), False)
    if train and has_batch_norm(variables):
        return f"{mode}; batch norm by the inputs' own statistics, held fixed"
    return mode


def _flat_gradients(
    model: Model, variables: Any, inputs: Array, output: Output, train: bool
) -> np.ndarray:
    """(examples, entries of an input), in float64."""
    gradients = _gradients(model, variables, inputs, output=output, train=train)
    return np.asarray(jax.device_get(gradients).reshape(len(inputs), -1), np.float64)


@functools.partial(jax.jit, static_argnames=("model", "output", "train"))
def _gradients(
    model: Model, variables: Any, inputs: Array, *, output: Output, train: bool
) -> Array:
    if train and has_batch_norm(variables):
        variables = _recalibrate_batch_norm(model, variables, inputs)

    def scalar(inputs: Array) -> Array:
        return output(apply_module(model, variables, (inputs, None), False)[0])

    return jax.grad(scalar)(inputs).astype(jnp.float32)


def _recalibrate_batch_norm(model: Model, variables: Any, inputs: Array) -> dict[str, Any]:
    """The variables with the inputs' batch statistics in place of the running ones.

    A running average moves from s to m s + (1 - m) b. At s = 0 that is (1 - m) b, and its
    derivative with
    respect to s is m: this gives the batch's b whatever module normalises. What does not move (m =
    1) stays.
    """
    old = variables["batch_stats"]

    def moved(statistics: Any) -> Any:
        with nn.intercept_methods(_without_dropout):
            given = {**variables, "batch_stats": statistics}
            return apply_module(model, given, (inputs, None), True)[1]["batch_stats"]

    zeros, ones = jax.tree.map(jnp.zeros_like, old), jax.tree.map(jnp.ones_like, old)
    new, momentum = jax.jvp(moved, (zeros,), (ones,))

    def of_batch(old: Array, new: Array, momentum: Array) -> Array:
        return jnp.where(momentum == 1, old, new / jnp.where(momentum == 1, 1, 1 - momentum))

    return {**variables, "batch_stats": jax.tree.map(of_batch, old, new, momentum)}


def _without_dropout(
    function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
) -> Any:
    if isinstance(context.module, nn.Dropout) and arguments:
        return arguments[0]
    return function(*arguments, **keywords)


def _cosines(gradients: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    units = np.divide(gradients, norms, out=np.full_like(gradients, np.nan), where=norms > 0)
    return units @ units.T


def _pair_mean(cosines: np.ndarray) -> float:
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    alive = pairs[~np.isnan(pairs)]
    return float(alive.mean()) if len(alive) else math.nan
