"""Principal directions of paths: closed forms, and a singular value decomposition."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis.landscape.plane import loss_plane
from deepjax.analysis.landscape.trajectory import trajectory
from deepjax.errors import InputError
from tests.analysis.landscape.landscape_cases import NOTHING, Point, at, double_well


def path_of(points):
    return [
        {"a": {"w": jnp.asarray(point[:3], jnp.float32)}, "b": jnp.asarray(point[3:], jnp.float32)}
        for point in points
    ]


def flat_of(tree):
    return np.concatenate([np.asarray(tree["a"]["w"]), np.asarray(tree["b"])])


def test_a_straight_path_lies_in_one_direction():
    way = np.array([2.0, 0.0, 1.0, -2.0, 4.0])
    found = trajectory(path_of([place * way for place in (0, 1, 2, 5)]))
    np.testing.assert_allclose(found.explained_variance_ratio, [1, 0, 0], atol=1e-6)
    distances = 5 * np.array([5, 4, 3, 0])  # |way| = 5
    np.testing.assert_allclose(np.abs(found.coordinates[:, 0]), distances, rtol=1e-5)
    np.testing.assert_allclose(found.coordinates[:, 1], 0)
    assert not np.any(flat_of(found.directions[1])) and found.parameters == 5


def test_a_planar_path_is_reconstructed():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((5, 2)))[0].T
    angles = np.linspace(0, 4, 9)
    points = np.stack([3 * np.cos(angles), np.sin(angles)], axis=1) @ basis + rng.standard_normal(5)
    found = trajectory([{"params": tree, "batch_stats": {}} for tree in path_of(points)])
    assert found.plane_variance_ratio == pytest.approx(1, abs=1e-6)
    directions = np.stack([flat_of(way) for way in found.directions])
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(found.coordinates @ directions + points[-1], points, atol=1e-5)
    x, y = found.grid(7, margin=0.1)
    assert (x[0], x[-1]) == pytest.approx(
        (
            found.coordinates[:, 0].min() - 0.1 * np.ptp(found.coordinates[:, 0]),
            x[0] + 6 * (x[1] - x[0]),
        )
    )
    assert y[0] < found.coordinates[:, 1].min() and y[-1] > found.coordinates[:, 1].max()


def test_any_path_against_a_singular_value_decomposition():
    points = np.random.default_rng(1).standard_normal((7, 5))
    found = trajectory(path_of(points))
    _, values, rows = np.linalg.svd(points - points.mean(0), full_matrices=False)
    np.testing.assert_allclose(
        found.explained_variance_ratio[:5], values**2 / np.sum(values**2), rtol=1e-4
    )
    signs = np.sign(np.sum(rows[:2] * np.stack([flat_of(way) for way in found.directions]), axis=1))
    np.testing.assert_allclose(
        found.coordinates, (points - points[-1]) @ rows[:2].T * signs, atol=1e-4
    )


def test_a_random_walk_appears_planar():
    """6 / pi^2 in the first direction, a quarter of it in the second (Antognini et al. 2018)."""
    walk = np.random.default_rng(0).standard_normal((60, 20000)).cumsum(0)
    found = trajectory([{"w": jnp.asarray(point, jnp.float32)} for point in walk])
    assert found.plane_variance_ratio == pytest.approx(found.random_walk_ratio, abs=0.01)
    assert found.random_walk_ratio == pytest.approx(6 / np.pi**2 * 1.25, abs=0.02)


def test_the_plane_of_a_path_passes_through_its_points():
    angles = np.linspace(0, 2, 6)
    points = [at(np.cos(angle), 0.5 * np.sin(angle)) for angle in angles]
    path = trajectory(points)
    for point, (x, y) in zip(points, path.coordinates, strict=True):
        grid = (x + np.array([-0.1, 0, 0.1]), y + np.array([-0.1, 0, 0.1]))
        plane = loss_plane(
            Point(), points[-1], NOTHING, *path.directions, grid=grid, path=path, loss=double_well
        )
        assert plane.loss[1, 1] == pytest.approx(
            float(double_well(point["params"]["w"], None)), rel=1e-4
        )
    with pytest.raises(InputError, match='variables is "not the path\'s last point"'):
        loss_plane(Point(), points[0], NOTHING, *path.directions, path=path, loss=double_well)
