"""The path of training through the parameters, in its two principal directions.

Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018
(arXiv:1712.09913), section 7.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.analysis.core.params import (
    Path,
    as_real,
    by_path,
    check_like,
    from_real,
    params_of,
    real_count,
    real_pairs,
    replace_leaves,
)
from deepjax.analysis.core.result import Result
from deepjax.errors import require

ROUNDING = 1e-12
"""Relative to the largest variance; a smaller one is rounding of float32, its direction noise."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Result):
    """Coordinates of points of training along the path's two principal directions."""

    origin: Any
    """Parameters of the last point, whose coordinates are (0, 0)."""
    directions: tuple[Any, Any]
    """Trees like the parameters, float32 (float64 if one of them is), orthogonal and of length 1;
    the second is 0 for a straight path. A complex parameter is a pair of real ones."""
    explained_variance_ratio: np.ndarray
    """(points - 1,): fraction of the path's variance per principal direction, descending."""
    coordinates: np.ndarray
    """(points, 2): of the projections, relative to the last point, in the parameters' units."""
    parameters: int

    @property
    def plane_variance_ratio(self) -> float:
        """Fraction of the variance in the plane of both directions."""
        return float(self.explained_variance_ratio[:2].sum())

    @property
    def random_walk_ratio(self) -> float:
        """The same of a random walk with as many steps: 76 % for a long one in many dimensions.

        A random walk also appears to lie in a plane; only a larger fraction is evidence.
        Source: Antognini and Sohl-Dickstein, "PCA of high dimensional random walks", 2018
        (arXiv:1806.08805); in infinitely many dimensions the variances are proportional to
        1 / (1 - cos(pi k / points)).
        """
        points = len(self.coordinates)
        variances = 1 / (1 - np.cos(np.pi * np.arange(1, points) / points))
        return float(variances[:2].sum() / variances.sum())

    def grid(self, points: int = 51, margin: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of a grid around the path, with `margin` x its longer side on each side."""
        require(isinstance(points, int) and points >= 3, "points", points, "3 or more")
        low, high = self.coordinates.min(0), self.coordinates.max(0)
        edge = margin * float((high - low).max())
        require(edge > 0, "margin", margin, "above 0")
        x, y = (np.linspace(a - edge, b + edge, points) for a, b in zip(low, high, strict=True))
        return x, y

    def summary(self) -> dict[str, Any]:
        """The fraction of the path's variance in the plane, and that of a random walk."""
        return {
            "variance in the plane": self.plane_variance_ratio,
            "of a random walk": self.random_walk_ratio,
            "points": len(self.coordinates),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per point."""
        return [
            {"point": index, "x": x, "y": y}
            for index, (x, y) in enumerate(self.coordinates.tolist())
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The path in its plane, coloured by time; returns the matplotlib Axes.

        With the loss as a background: `loss_plane(..., path=path)`.
        """
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import canvas, format_percent

        with canvas(ax, 5.2, 4.2, title) as axes:
            x, y = self.coordinates.T
            draw_path(axes, self, "0.55")
            points = axes.scatter(x, y, c=np.arange(len(x)), cmap="viridis", s=22, zorder=4)
            ticks = MaxNLocator(5, integer=True)
            axes.figure.colorbar(points, ax=axes, shrink=0.85, label="point", ticks=ticks)
            found, walk = map(format_percent, (self.plane_variance_ratio, self.random_walk_ratio))
            finding = f"{found} of the path's variance lies in this plane"
            axes.set_title(f"{finding}\na random walk of {len(x)} points: {walk}")
            across, up = axis_labels(self)
            axes.set(xlabel=across, ylabel=up)
            axes.margins(0.12)
        return axes


def draw_path(ax: Any, path: Trajectory, color: str) -> None:
    """The points of a trajectory, joined, with labels at its start and end."""
    x, y = path.coordinates.T
    ax.plot(x, y, "o-", color=color, linewidth=1.3, markersize=3, zorder=3)
    box: dict[str, Any] = {
        "boxstyle": "round,pad=0.15",
        "facecolor": "white",
        "edgecolor": "none",
        "alpha": 0.8,
    }
    text: dict[str, Any] = {"textcoords": "offset points", "zorder": 6, "bbox": box, "fontsize": 9}
    for label, index in {"start": 0, "end": -1}.items():
        ax.annotate(label, (x[index], y[index]), (6, 6), **text)


def axis_labels(path: Trajectory | None) -> tuple[str, str]:
    """Labels of the axes of a plane, with the variance along each direction of a trajectory."""
    from deepjax.analysis.plots import format_percent

    if path is None:
        return "multiple of the first direction", "multiple of the second direction"
    first, second = (format_percent(float(each)) for each in path.explained_variance_ratio[:2])
    return f"first principal direction ({first} of the variance)", f"second ({second})"


def trajectory(points: Sequence[Any]) -> Trajectory:
    """Principal components of a path through the parameters, relative to its last point.

    points: parameters (or variables, of which "params" is used) at three or more moments, in
    order, such as one per epoch. All parameters have equal weight, biases included; the mean over
    the points is subtracted first.
    Raises InputError for fewer points, different shapes, non-finite values, and a constant path.
    Cost: no pass over data; on the host 8 bytes x points x the largest array, and 8 bytes x
    parameters for the directions.
    Source: Li et al. 2018, section 7.2 (the matrix of differences from the last point).
    """
    leaves = _leaves(points)
    gram = np.zeros((len(points), len(points)))
    for path in leaves[-1]:
        centred = _centred(leaves, path)
        gram += centred @ centred.T
    require(bool(np.isfinite(gram).all()), "points", "with NaN or infinity", "finite parameters")
    variances, parts = np.linalg.eigh(gram)
    variances, parts = np.maximum(variances[::-1], 0), parts[:, ::-1]
    require(variances[0] > 0, "points", "all the same", "a path that moves")
    lengths = np.sqrt(np.where(variances[:2] > ROUNDING * variances[0], variances[:2], 0))
    coordinates = lengths * (parts[:, :2] - parts[-1:, :2])
    # The sign that eigh returns is arbitrary: the coordinate farthest from 0 becomes positive.
    farthest = coordinates[np.abs(coordinates).argmax(0), [0, 1]]
    signs = np.where(farthest < 0, -1.0, 1.0)
    weights = np.divide(
        parts[:, :2] * signs, lengths, out=np.zeros_like(coordinates), where=lengths > 0
    )
    flat = {path: weights.T @ _centred(leaves, path) for path in leaves[-1]}
    origin, view = params_of(points[-1]), jax.device_get(as_real(params_of(points[-1])))
    first, second = (
        {
            path: jnp.asarray(flat[path][which].reshape(leaf.shape), leaf.dtype)
            for path, leaf in by_path(view).items()
        }
        for which in (0, 1)
    )
    directions = (
        from_real(replace_leaves(view, first), origin),
        from_real(replace_leaves(view, second), origin),
    )
    count = sum(map(real_count, leaves[-1].values()))
    ratios = variances[:-1] / variances.sum()
    return Trajectory(origin, directions, ratios, coordinates * signs, count)


def _leaves(points: Sequence[Any]) -> list[dict[Path, np.ndarray]]:
    require(
        isinstance(points, Sequence),
        "points",
        type(points).__name__,
        "a list of parameters, first to last",
    )
    require(len(points) >= 3, "points", f"{len(points)} of them", "three or more")
    trees = [params_of(point) for point in points]
    return [
        jax.device_get(check_like(f"point {index}", tree, trees[-1]))
        for index, tree in enumerate(trees)
    ]


def _centred(leaves: list[dict[Path, np.ndarray]], path: Path) -> np.ndarray:
    """(points, real numbers) of one leaf, float64, minus the mean over the points."""
    stacked = np.stack(
        [np.asarray(real_pairs(leaf[path])).astype(np.float64).ravel() for leaf in leaves]
    )
    return stacked - stacked.mean(0)
