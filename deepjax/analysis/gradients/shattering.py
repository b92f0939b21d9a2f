"""Shattered gradients: how similar the gradients at different inputs are.

Balduzzi, Frean, Leary, Lewis, Ma and McWilliams, "The shattered gradients problem: if resnets are
the answer, then what is the question?", 2017 (arXiv:1702.08591). The gradient is that of the output
with respect to the input, example by example.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import TRAIN, Mode
from deepjax.analysis.core.result import Result
from deepjax.analysis.gradients.input_gradients import (
    Output,
    input_gradients,
    input_mode_text,
    prepare_input_gradients,
)
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.batch import Batches, data_text
from deepjax.analysis.network.inputs import floats_of, inputs_of, is_floating
from deepjax.analysis.network.module import Model, network_of
from deepjax.errors import InputError, require


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Shattering(Result):
    """Similarity of the gradients at a batch's inputs, over all pairs of examples."""

    mode: Mode
    """In training, batch norm uses the batch's statistics, as a fixed scale and shift; in EVAL the
    running ones. Dropout is off."""
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    has_batch_norm: bool
    examples: int
    zero_gradients: int
    """Number of examples whose gradient is 0; the means exclude them."""
    cosine: float
    """Mean over pairs of the cosine of their gradients."""
    correlation: float
    """The same with each gradient centred by its own mean over the input's entries."""
    cosines: np.ndarray
    """(examples, examples): the cosine of each pair."""

    def summary(self) -> dict[str, Any]:
        """The mean cosine and correlation, and the number of examples, and of zero gradients."""
        return {
            "cosine": self.cosine,
            "correlation": self.correlation,
            "examples": self.examples,
            "zero gradients": self.zero_gradients,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per example: the mean, minimum and maximum of its cosines."""
        cosines, found = self.cosines.copy(), []
        np.fill_diagonal(cosines, np.nan)
        for index, row in enumerate(cosines):
            others = row[~np.isnan(row)]
            known = len(others) > 0
            found.append(
                {
                    "example": index,
                    "mean cosine": float(others.mean()) if known else None,
                    "min cosine": float(others.min()) if known else None,
                    "max cosine": float(others.max()) if known else None,
                }
            )
        return found

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Histogram of the pairs' cosines with its mean; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        pairs = _known_pairs(self.cosines)
        zero = f", {self.zero_gradients} of them without a gradient" if self.zero_gradients else ""
        statistics = f"\n{self.mode.statistics}" if self.has_batch_norm else ""
        with canvas(ax, 5.2, 3.8, title) as axes:
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
            axes.set_title(f"Gradients at {self.examples} inputs{zero}{statistics}")
            axes.set(xlabel="cosine of two inputs' gradients", ylabel="pairs")
        return axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GradientLine(Result):
    """The derivative of the output along a straight line of inputs, and its autocorrelation."""

    mode: Mode
    """In training, batch norm uses the statistics of all points, as a fixed scale and shift; in
    EVAL the running ones. Dropout is off."""
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    has_batch_norm: bool
    spacing: float
    """Distance between neighbouring points, in the input's units."""
    gradient: np.ndarray
    """(points,): derivative of the output with respect to the distance along the line."""
    autocorrelation: np.ndarray
    """(points // 2 + 1,): at lags 0, 1, ... points; 1 at lag 0. NaN for a constant gradient."""

    @property
    def white_noise_bound(self) -> float:
        """Autocorrelations of white noise are within this of 0 in 95 % of cases."""
        return 1.96 / math.sqrt(len(self.gradient))

    @property
    def correlated_points(self) -> int:
        """The first lag at which the autocorrelation is within the bound of white noise, less 1."""
        outside = np.abs(self.autocorrelation[1:]) > self.white_noise_bound
        return int(np.argmin(outside)) if not outside.all() else len(outside)

    def summary(self) -> dict[str, Any]:
        """How long gradients stay alike, their autocorrelation at lag 1, and the spacing."""
        return {
            "correlated points": self.correlated_points,
            "autocorrelation at lag 1": float(self.autocorrelation[1]),
            "points": len(self.gradient),
            "spacing": self.spacing,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per lag."""
        return [
            {"lag": lag, "distance": lag * self.spacing, "autocorrelation": float(value)}
            for lag, value in enumerate(self.autocorrelation)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Autocorrelation against the lag, with the band of white noise; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        values, bound = self.autocorrelation, self.white_noise_bound
        points = len(self.gradient)
        finding = f"Gradients stay alike for {self.correlated_points} of {points} points"
        if np.isnan(values).all():
            finding = "The gradient is the same at all points"
        last, label = len(values) - 1, "white noise (95 %) "
        bottom = min(-0.4, float(np.nanmin(values, initial=0)))
        with canvas(ax, 5.2, 3.8, title) as axes:
            axes.plot(range(len(values)), values, color=COLORS[0])
            axes.axhspan(-bound, bound, color="0.5", alpha=0.2, linewidth=0)
            axes.text(last, bound, label, color="0.4", ha="right", va="bottom")
            data = data_text(points, self.mode, self.has_batch_norm)
            axes.set_title(f"{finding}\n{data}" if self.has_batch_norm else finding)
            axes.set(xlabel="lag (points)", ylabel="autocorrelation", ylim=(bottom, 1.05))
        return axes


@instrument
def shattering(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode = TRAIN,
    key: Array | None = None,
    output: Output = jnp.sum,
) -> Shattering:
    """Mean pairwise correlation of d output / d input over the examples of a batch.

    batch: also the inputs alone; of a list of batches the pairs of all examples. The gradient is
    that with respect to all inputs of floats that have the examples' axis. In training batch norm
    uses the statistics of the batch, with Ghost(k) those of each ghost batch, and as in the paper's
    analysis it is a fixed scale and shift in the backward pass: through the statistics every
    example would influence every other's output, and their gradients would cancel in the mean. The
    statistics are those that the network's running averages approach (for groups their mean), so a
    normalisation over the batch without running averages is not included. Dropout is off.
    output: a function of the network's output, such as its sum; reuse the same function object,
    since a new lambda triggers recompilation.
    Raises InputError for inputs that do not fit or have no floats, fewer than two, and an output
    that is not a scalar; in training for a function with batch statistics, which does not return
    them.
    Cost: two forward passes (one in EVAL) and one backward, compiled once per network and shape;
    memory as training.
    Source: Balduzzi et al. 2017, section 3.
    """
    options: dict[str, Any] = {"mode": mode, "key": key, "output": output}
    task = prepare_input_gradients(model, variables, batch, **options)
    gradients = input_gradients(task, output)
    require(len(gradients) >= 2, "batch", f"of {len(gradients)} example", "two or more")
    cosines = _cosines(gradients)
    centred = _cosines(gradients - gradients.mean(1, keepdims=True))
    return Shattering(
        mode=mode,
        mode_text=input_mode_text(task),
        has_batch_norm=task.has_batch_norm,
        examples=len(gradients),
        zero_gradients=int((gradients == 0).all(1).sum()),
        cosine=_pair_mean(cosines),
        correlation=_pair_mean(centred),
        cosines=cosines,
    )


@instrument
def gradient_line(
    model: Model,
    variables: Any,
    start: Any,
    end: Any,
    points: int,
    *,
    mode: Mode = TRAIN,
    key: Array | None = None,
    output: Output = jnp.sum,
) -> GradientLine:
    """Autocorrelation of the gradient along a line of inputs.

    It resembles brown noise in shallow networks, white noise in deep plain ones. start, end: one
    example each, in the form of a batch without the examples' axis: an array, or for networks with
    several inputs such as ((x, y), None), or {"x": x, "y": y} by the names of the call's arguments;
    `points` inputs lie evenly between their floats, and the other inputs are those of the start.
    The gradient is the derivative along the line; for inputs of one number the gradient itself.
    mode and `output` as in `shattering`, with the points as its batch.
    Raises InputError for ends of different shapes or at one point, fewer than three points, and
    inputs that do not fit.
    Cost: as `shattering` with `points` examples.
    Source: Balduzzi et al. 2017, section 2 and Figures 1 and 2 (256 points, -2 to 2).
    """
    require(isinstance(points, int) and points >= 3, "points", points, "three or more")
    network = network_of(model)
    ends = inputs_of(network, start), inputs_of(network, end)
    _require_alike(*ends)
    steps = [
        np.asarray(last, np.float64) - np.asarray(first, np.float64)
        for first, last in zip(*map(floats_of, ends), strict=True)
    ]
    dtypes = ", ".join(str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(ends[0]))
    require(len(steps) > 0, "start", f"of inputs {dtypes}", "floats")
    flat = np.concatenate([np.ravel(step) for step in steps])
    length = float(np.linalg.norm(flat))
    require(length > 0, "end", "the start itself", "another input")

    options: dict[str, Any] = {"mode": mode, "key": key, "output": output}
    line = jax.tree.map(lambda first, last: _between(first, last, points), *ends)
    try:
        task = prepare_input_gradients(network, variables, (line, None), **options)
    except InputError as error:
        raise InputError(
            f"{str(error).rstrip('.')}; allowed: a start and an end that are single examples, of "
            "which the network takes a batch"
        ) from error
    gradient = input_gradients(task, output) @ (flat / length)
    return GradientLine(
        mode=mode,
        mode_text=input_mode_text(task),
        has_batch_norm=task.has_batch_norm,
        spacing=length / (points - 1),
        gradient=gradient,
        autocorrelation=autocorrelation(gradient, points // 2),
    )


def autocorrelation(values: np.ndarray, lags: int) -> np.ndarray:
    """Autocorrelation at lags 0 to `lags`, 1 at lag 0; NaN for constant values."""
    centred = values - values.mean()
    total = float(centred @ centred)
    if total == 0:
        return np.full(lags + 1, np.nan)
    products = [centred[: len(centred) - lag] @ centred[lag:] for lag in range(lags + 1)]
    return np.array(products) / total


def _require_alike(start: Inputs, end: Inputs) -> None:
    shapes, others = (jax.tree.map(jnp.shape, each) for each in (start, end))
    if shapes == others:
        return
    given, wanted = (
        ", ".join(map(str, map(jnp.shape, jax.tree.leaves(each)))) for each in (end, start)
    )
    raise InputError(f"end is 'of shape {given}'; allowed: the start's shape {wanted}")


def _between(start: Any, end: Any, points: int) -> Array:
    """(points, ...): from start to end; other values than floats are those of the start."""
    if is_floating(start):
        return jnp.linspace(jnp.asarray(start), jnp.asarray(end), points)
    is_key = jnp.issubdtype(jnp.result_type(start), jax.dtypes.prng_key)
    return start if is_key else jnp.broadcast_to(start, (points, *jnp.shape(start)))


def _cosines(gradients: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    units = np.divide(gradients, norms, out=np.full_like(gradients, np.nan), where=norms > 0)
    return units @ units.T


def _known_pairs(cosines: np.ndarray) -> np.ndarray:
    """The cosines of all pairs of examples with a gradient."""
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    return pairs[~np.isnan(pairs)]


def _pair_mean(cosines: np.ndarray) -> float:
    pairs = _known_pairs(cosines)
    return float(pairs.mean()) if len(pairs) else math.nan
