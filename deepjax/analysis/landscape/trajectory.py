"""The path that training takes through the parameters, in its two principal directions.

Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018 (arXiv:1712.09913), section 7.
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
    filled,
    from_real,
    params_of,
    real_count,
    real_pairs,
)
from deepjax.errors import require

ROUNDING = 1e-12
"""A variance of this part of the largest is rounding of float32 parameters, and its direction noise."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """Points of training by their coordinates along the path's two principal directions."""

    origin: Any
    """The last point's parameters, where both coordinates are 0."""
    directions: tuple[Any, Any]
    """Trees like the parameters, float32 (float64 where one of them is), orthogonal and of length 1; the second is 0 of a straight
    path. Complex parameters are pairs of real ones."""
    shares: np.ndarray
    """(points - 1,): share of the path's variance in each principal direction, largest first."""
    coordinates: np.ndarray
    """(points, 2): of each point from the last one, in the parameters' own units; the path is projected on the plane."""
    parameters: int

    @property
    def share(self) -> float:
        """Share of the variance in the plane."""
        return float(self.shares[:2].sum())

    @property
    def random_walk(self) -> float:
        """What a random walk of as many steps has in its first two directions: 76 % of a long one in many dimensions.

        A random walk too looks as if it lay in a plane: only a share above this says that the path does.
        Source: Antognini and Sohl-Dickstein, "PCA of high dimensional random walks", 2018 (arXiv:1806.08805); in infinitely many
        dimensions the variances go as 1 / (1 - cos(pi k / points)).
        """
        variances = 1 / (
            1 - np.cos(np.pi * np.arange(1, len(self.coordinates)) / len(self.coordinates))
        )
        return float(variances[:2].sum() / variances.sum())

    def grid(self, points: int = 51, margin: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates along both directions of a plane that holds the path, with `margin` of its longer side around it."""
        require(isinstance(points, int) and points >= 3, "points", points, "3 or more")
        low, high = self.coordinates.min(0), self.coordinates.max(0)
        edge = margin * float((high - low).max())
        require(edge > 0, "margin", margin, "above 0")
        x, y = (np.linspace(a - edge, b + edge, points) for a, b in zip(low, high, strict=True))
        return x, y

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a point."""
        return [
            {"point": place, "x": x, "y": y}
            for place, (x, y) in enumerate(self.coordinates.tolist())
        ]

    def plot(self, ax: Any = None) -> Any:
        """The path in its plane; returns the matplotlib Axes. With the loss below it: `loss_plane(..., path=path)`."""
        from deepjax.analysis.landscape.landscape_figures import draw_trajectory

        return draw_trajectory(self, ax)


def trajectory(points: Sequence[Any]) -> Trajectory:
    """Principal components of a path through the parameters, seen from its last point.

    points: parameters (or variables, of which "params" are taken) of three or more moments, first to last, such as one an epoch.
    All parameters count alike, biases too; the mean over the points is taken off before the components are found, as usual.
    Raises InputError for fewer points, points of different shapes, values that are not finite, and a path that does not move.
    Cost: no pass over data; on the host 8 bytes x points x the largest array, and 8 x parameters for the directions.
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
    signs = np.where(
        coordinates[np.abs(coordinates).argmax(0), [0, 1]] < 0, -1.0, 1.0
    )  # one sign, wherever eigh puts it
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
    directions = (from_real(filled(view, first), origin), from_real(filled(view, second), origin))
    count = sum(map(real_count, leaves[-1].values()))
    shares = variances[:-1] / variances.sum()
    return Trajectory(origin, directions, shares, coordinates * signs, count)


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
        jax.device_get(check_like(f"point {place}", tree, trees[-1]))
        for place, tree in enumerate(trees)
    ]


def _centred(leaves: list[dict[Path, np.ndarray]], path: Path) -> np.ndarray:
    """(points, real numbers) of one leaf, float64, without the mean over the points."""
    stacked = np.stack(
        [np.asarray(real_pairs(leaf[path])).astype(np.float64).ravel() for leaf in leaves]
    )
    return stacked - stacked.mean(0)
