"""The loss on a plane through a network.

Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018
(arXiv:1712.09913).
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import by_path, check_like
from deepjax.analysis.core.result import Result
from deepjax.analysis.landscape.interpolate import (
    evaluate,
    finite_or_nan,
    needs_log_scale,
    prepare_interpolation,
    validate_points,
    with_directions,
)
from deepjax.analysis.landscape.trajectory import Trajectory, axis_labels, draw_path
from deepjax.analysis.network.batch import Batches, data_text
from deepjax.analysis.network.module import Loss, Model, cross_entropy
from deepjax.errors import require

ROUNDING = 1e-6  # relative precision of a loss in float32


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LossPlane(Result):
    """The loss on a plane of parameters, with the network at (0, 0)."""

    mode: Mode
    has_batch_norm: bool
    examples: int | None
    x: np.ndarray
    """(columns,): multiples of the first direction."""
    y: np.ndarray
    """(rows,): multiples of the second direction."""
    loss: np.ndarray
    """(rows, columns)."""
    accuracy: np.ndarray | None
    """(rows, columns); None as in `LossLine`."""
    path: Trajectory | None
    """The trajectory that defines the plane, or None."""

    @property
    def concave_fraction(self) -> float:
        """Fraction of the inner grid points at which the loss curves down in some direction.

        Directions in the plane; NaN without finite curvatures. By central differences; curvatures
        within the loss's rounding do not count. The Hessian can have negative eigenvalues where
        the plane shows none (Li et al. 2018, section 6).
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

    def summary(self) -> dict[str, Any]:
        """The range of the loss, and the fraction of the plane that curves down."""
        known = finite_or_nan(self.loss)
        return {
            "least loss": float(np.nanmin(known)),
            "greatest loss": float(np.nanmax(known)),
            "fraction that curves down": self.concave_fraction,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per point, row by row."""
        x, y = (values.ravel().tolist() for values in np.meshgrid(self.x, self.y))
        accuracy = [None] * len(x) if self.accuracy is None else self.accuracy.ravel().tolist()
        columns = zip(x, y, self.loss.ravel().tolist(), accuracy, strict=True)
        return [{"x": x, "y": y, "loss": loss, "accuracy": right} for x, y, loss, right in columns]

    def plot(
        self, ax: Any = None, title: str | None = None, bounds: tuple[float, float] | None = None
    ) -> Any:
        """Filled contours of the loss, the network as a cross, and the path of training.

        Logarithmic where the range is wide. bounds: the ends of a logarithmic colour scale, so that
        planes can be compared. Returns the matplotlib Axes.
        """
        from deepjax.analysis.plots import COLORS, canvas, format_percent

        with canvas(ax, 5.6, 4.6, title) as axes:
            low, high = self._draw_contours(axes, bounds)
            if self.path is not None:
                draw_path(axes, self.path, "white")
            axes.plot([0], [0], "+", color=COLORS[1], markersize=11, markeredgewidth=2.2, zorder=5)
            concave = self.concave_fraction
            downward = "none" if concave == 0 else format_percent(concave)
            finding = f"Loss from {low:.3g} to {high:.3g}; {downward} of the plane curves down"
            axes.set_title(f"{finding}\n{data_text(self.examples, self.mode, self.has_batch_norm)}")
            across, up = axis_labels(self.path)
            axes.set(xlabel=across, ylabel=up)
            axes.set(xlim=(self.x[0], self.x[-1]), ylim=(self.y[0], self.y[-1]))
            axes.grid(False)
        return axes

    def _draw_contours(self, ax: Any, bounds: tuple[float, float] | None) -> tuple[float, float]:
        """Contours and colour bar; returns the smallest and the largest finite loss."""
        from matplotlib.colors import LogNorm, Normalize
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

        losses = np.ma.masked_invalid(self.loss)
        low, high = (float(losses.min()), float(losses.max())) if losses.count() else (0.0, 0.0)
        first, last = bounds or (low, high)
        if bounds or needs_log_scale(self.loss):
            levels = np.geomspace(first, last, 25)
            norm, label = LogNorm(levels[0], levels[-1]), "loss, logarithmic"
            ticks = LogLocator(subs=(1, 2, 5)).tick_values(first, last)
        else:
            levels = np.linspace(low, high + (high == low), 25)
            norm, label = Normalize(levels[0], levels[-1]), "loss"
            ticks = MaxNLocator(6).tick_values(low, high)
        filled = ax.contourf(self.x, self.y, losses, levels, cmap="viridis", norm=norm)
        lines: dict[str, Any] = {"colors": "white", "linewidths": 0.5, "alpha": 0.7}
        ax.contour(self.x, self.y, losses, levels[::2], **lines)
        bar = ax.figure.colorbar(filled, ax=ax, shrink=0.9, label=label)
        bar.set_ticks([tick for tick in ticks if first <= tick <= last])
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        return low, high


@instrument
def loss_plane(
    model: Model,
    variables: Any,
    batch: Batches,
    x: Any,
    y: Any,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = EVAL,
    key: Array | None = None,
    chunk: int = 1,
    progress: Progress = None,
    grid: tuple[Any, Any] | None = None,
    path: Trajectory | None = None,
) -> LossPlane:
    """Loss and accuracy at the parameters plus multiples of two directions, trees like them.

    grid: multiples of x and of y, three or more each, evenly increasing; default 51 from -1 to 1,
    or the grid of the path. path: a trajectory that ends at `variables`; its plane is
    `loss_plane(model, variables, batch, *path.directions, path=path)`.
    Other arguments, errors and memory as for `loss_line`. Cost: one forward pass over the data per
    point. Source: Li et al. 2018, sections 3 and 7 (without their map of the Hessian's
    eigenvalues, section 6).
    """
    given = grid or (path.grid() if path else (np.linspace(-1, 1, 51), np.linspace(-1, 1, 51)))
    require(
        len(given) == 2, "grid", f"of {len(given)} parts", "a pair, the points along x and along y"
    )
    across, up = _evenly_spaced("grid's x", given[0]), _evenly_spaced("grid's y", given[1])
    options: dict[str, Any] = {"loss": loss, "mode": mode, "key": key, "chunk": chunk}
    prepared = prepare_interpolation(model, variables, batch, progress=progress, **options)
    task, params = prepared.task, prepared.task.variables["params"]
    if path:
        last = check_like("path", path.origin, params)
        require(
            all(np.array_equal(last[name], leaf) for name, leaf in by_path(params).items()),
            "variables",
            "not the path's last point",
            "the variables at which the path ends",
        )
    columns, rows = (values.ravel() for values in np.meshgrid(across, up))
    weights = np.stack([np.ones_like(columns), columns, rows], axis=1)
    losses, accuracy = evaluate(prepared, with_directions(params, x=x, y=y), weights)
    shape = (len(up), len(across))
    return LossPlane(
        mode,
        task.has_batch_norm,
        task.data.examples,
        across,
        up,
        losses.reshape(shape),
        None if accuracy is None else accuracy.reshape(shape),
        path,
    )


def _evenly_spaced(name: str, given: Any) -> np.ndarray:
    points = validate_points(name, given)
    steps = np.diff(points)
    fits = len(points) >= 3 and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-3)
    require(
        bool(fits),
        name,
        f"{len(points)} points from {points[0]:g} to {points[-1]:g}",
        "three or more that rise evenly",
    )
    return points
