"""The loss along a line through a network, and between two networks.

Goodfellow, Vinyals and Saxe, "Qualitatively characterizing neural network optimization problems",
2015 (arXiv:1412.6544). Barriers: Frankle, Dziugaite, Roy and Carbin, "Linear mode connectivity and
the lottery ticket hypothesis", 2020 (arXiv:1912.05671); Entezari, Sedghi, Saukh and Neyshabur, "The
role of permutation invariance in linear mode connectivity of neural networks", 2022
(arXiv:2110.06296).
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import check_like, replace_leaves
from deepjax.analysis.core.result import Result
from deepjax.analysis.landscape.interpolate import (
    evaluate,
    finite_or_nan,
    needs_log_scale,
    prepare_interpolation,
    validate_points,
    with_directions,
)
from deepjax.analysis.network.batch import Batches, data_text
from deepjax.analysis.network.module import Loss, Model, cross_entropy, entry
from deepjax.errors import require

VISIBLE_BARRIER = 0.02  # relative to the largest loss: a lower barrier is not marked in the figure


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LossLine(Result):
    """The loss along a straight line of parameters."""

    mode: Mode
    """Between two networks, in EVAL the running statistics are interpolated as the parameters are;
    in training those of each batch are recomputed at every point."""
    has_batch_norm: bool
    examples: int | None
    is_interpolation: bool
    """Whether it runs from one network (0) to another (1), rather than along a direction."""
    alphas: np.ndarray
    """(points,): multiples of the direction, or weights of the second network."""
    loss: np.ndarray
    """(points,)."""
    accuracy: np.ndarray | None
    """(points,); None unless labels are integers and outputs one number per class."""

    @property
    def barrier(self) -> float:
        """Maximum height of the loss above the line between the ends' losses; NaN for a direction.

        0 or more. Source: Entezari et al. 2022, definition 1; Frankle et al. 2020, section 2, who
        take the error and the ends' mean.
        """
        return float(self._heights(self.loss).max())

    @property
    def barrier_alpha(self) -> float:
        """The alpha of the barrier."""
        heights = self._heights(self.loss)
        return math.nan if np.isnan(heights).any() else float(self.alphas[heights.argmax()])

    @property
    def error_barrier(self) -> float:
        """The barrier of the classification error; NaN without accuracy."""
        return math.nan if self.accuracy is None else float(self._heights(1 - self.accuracy).max())

    def _heights(self, values: np.ndarray) -> np.ndarray:
        """(points,): above the straight line from 0 to 1; minus infinity beyond it."""
        if not self.is_interpolation:
            return np.full(len(values), math.nan)
        first, last = self._ends(values)
        heights = values - ((1 - self.alphas) * first + self.alphas * last)
        inside = (self.alphas >= -1e-6) & (self.alphas <= 1 + 1e-6)
        return np.where(inside, heights, -math.inf)

    def _ends(self, values: np.ndarray) -> tuple[Any, Any]:
        first, last = (values[np.abs(self.alphas - end).argmin()] for end in (0, 1))
        return first, last

    def summary(self) -> dict[str, Any]:
        """The range of the loss; between two networks its barrier, and that of the error."""
        known = finite_or_nan(self.loss)
        ends = {"least loss": float(np.nanmin(known)), "greatest loss": float(np.nanmax(known))}
        if not self.is_interpolation:
            return ends
        return ends | {"barrier": self.barrier, "error barrier": self.error_barrier}

    def rows(self) -> list[dict[str, Any]]:
        """One dict per point."""
        accuracy = [None] * len(self.alphas) if self.accuracy is None else self.accuracy.tolist()
        columns = zip(self.alphas.tolist(), self.loss.tolist(), accuracy, strict=True)
        return [{"alpha": a, "loss": loss, "accuracy": right} for a, loss, right in columns]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Loss, and accuracy on a second axis; between two networks also the barrier.

        Returns the matplotlib Axes.
        """
        from matplotlib.ticker import PercentFormatter

        from deepjax.analysis.plots import COLORS, canvas, plain_log_ticks

        with canvas(ax, 5.6, 3.9, title) as axes:
            axes.plot(self.alphas, finite_or_nan(self.loss), color=COLORS[0])
            if needs_log_scale(self.loss):
                axes.set_yscale("log")
            plain_log_ticks(axes)
            axes.set_ylabel("loss", color=COLORS[0])
            if self.accuracy is not None:
                other = axes.twinx()
                other.plot(self.alphas, self.accuracy, "--", color=COLORS[1])
                other.set_ylabel("accuracy (dashed)", color=COLORS[1])
                other.set_ylim(0, 1)
                other.yaxis.set_major_formatter(PercentFormatter(1))
                other.grid(False)
            if self.is_interpolation:
                self._draw_barrier(axes, COLORS[0])
                axes.set_xlabel("weight of the second network")
            else:
                axes.set_xlabel("multiple of the direction")
            data = data_text(self.examples, self.mode, self.has_batch_norm)
            axes.set_title(f"{self._title()}\n{data}")
            axes.set_xlim(self.alphas[0], self.alphas[-1])
        return axes

    def _draw_barrier(self, ax: Any, color: str) -> None:
        """The straight line between the ends' losses, and an arrow from it up to the barrier."""
        first, last = map(float, self._ends(self.loss))
        alphas = np.linspace(0, 1, 101)
        ax.plot(alphas, (1 - alphas) * first + alphas * last, ":", color="0.45", linewidth=1.4)
        highest = float(np.nanmax(finite_or_nan(self.loss)))
        if not math.isfinite(self.barrier) or self.barrier <= VISIBLE_BARRIER * highest:
            return
        x = self.barrier_alpha
        foot = (1 - x) * first + x * last
        top = foot + self.barrier
        ax.annotate("", (x, foot), (x, top), arrowprops={"arrowstyle": "<->", "color": color})
        middle = math.sqrt(foot * top) if ax.get_yscale() == "log" else foot + self.barrier / 2
        ax.text(x + 0.015, middle, f"barrier {self.barrier:.3g}", color=color, va="center")

    def _title(self) -> str:
        known = finite_or_nan(self.loss)
        if np.isnan(known).all():
            return "No finite loss on the line"
        if not self.is_interpolation:
            low, high = int(np.nanargmin(known)), int(np.nanargmax(known))
            least = f"{known[low]:.3g} at {self.alphas[low]:.2g}"
            return f"Loss from {least} to {known[high]:.3g} at {self.alphas[high]:.2g}"
        if not math.isfinite(self.barrier):
            return "The loss is not finite between the networks"
        error = f"; of the error {100 * self.error_barrier:.3g} points"
        error = "" if math.isnan(self.error_barrier) else error
        if self.barrier > 0:
            return f"Barrier of the loss {self.barrier:.3g}{error}"
        return f"No barrier of the loss{error}"


@instrument
def loss_line(
    model: Model,
    variables: Any,
    batch: Batches,
    direction: Any,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    key: Array | None = None,
    chunk: int = 1,
    progress: Progress = None,
    alphas: Any = None,
) -> LossLine:
    """Loss and accuracy at the parameters plus alpha x direction, a tree like them.

    alphas: (points,), default 51 from -1 to 1. In training every point has the same dropout masks,
    one per batch.
    chunk: points evaluated at once. Pass the same loss object again: a new lambda recompiles.
    Raises InputError for a batch, direction or points that do not fit. Compiled once for each
    network, loss, shape and chunk. Cost: one forward pass over the data per point;
    memory: chunk x (parameters + activations of a batch), and the data.
    Source: Goodfellow et al. 2015, section 3; Li et al. 2018 (arXiv:1712.09913), section 3.
    """
    points = validate_points("alphas", alphas if alphas is not None else np.linspace(-1, 1, 51))
    options: dict[str, Any] = {"loss": loss, "mode": mode, "key": key, "chunk": chunk}
    prepared = prepare_interpolation(model, variables, batch, progress=progress, **options)
    task = prepared.task
    trees = with_directions(task.variables["params"], direction=direction)
    found = evaluate(prepared, trees, np.stack([np.ones_like(points), points], axis=1))
    return LossLine(mode, task.has_batch_norm, task.data.examples, False, points, *found)


@instrument
def linear_interpolation(
    model: Model,
    variables_a: Any,
    variables_b: Any,
    batch: Batches,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    key: Array | None = None,
    chunk: int = 1,
    progress: Progress = None,
    alphas: Any = None,
) -> LossLine:
    """Loss and accuracy on the straight line between two networks, and its barrier.

    alphas: weights of b, from a (0) to b (1), with both ends; default 25 from 0 to 1.
    In EVAL the running statistics are interpolated like the parameters, and do not fit the
    interpolated networks; TRAIN and Ghost(k) recompute them. All other collections are those of a.
    Other arguments, errors and cost as for `loss_line`.
    Source: Goodfellow et al. 2015, section 3; Frankle et al. 2020, section 2; Entezari et al. 2022,
    definition 1.
    """
    points = validate_points("alphas", alphas if alphas is not None else np.linspace(0, 1, 25))
    require(
        all(np.isclose(points, end, atol=1e-6).any() for end in (0, 1)),
        "alphas",
        "without 0 or 1",
        "points with both ends, 0 and 1",
    )
    options: dict[str, Any] = {"loss": loss, "mode": mode, "key": key, "chunk": chunk}
    prepared = prepare_interpolation(model, variables_a, batch, progress=progress, **options)
    task = prepared.task
    variables_a, (_, variables_b) = task.variables, entry(model, variables_b)
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
    ends = tuple(
        replace_leaves(first, check_like("variables_b", end, first)) for end in (first, last)
    )
    found = evaluate(prepared, ends, np.stack([1 - points, points], axis=1))
    return LossLine(mode, task.has_batch_norm, task.data.examples, True, points, *found)
