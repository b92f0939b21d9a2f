"""Sharpness along training, and the edge of stability on quadratics."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.analysis import edge_of_stability, logged_sharpness, sharpness_path
from deepjax.errors import InputError


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_edge_of_stability_on_a_quadratic(momentum, nesterov):
    edge = edge_of_stability(0.1, momentum, nesterov)
    optimizer = optax.sgd(0.1, momentum, nesterov)
    for curvature, diverges in ((0.98 * edge, False), (1.02 * edge, True)):
        x, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
        for _ in range(600):
            step, state = optimizer.update(curvature * x, state)
            x = x + step
        assert (not abs(float(x)) <= 1.0) == diverges


def test_a_path_counts_the_points_above_its_edge():
    path = sharpness_path([0, 10, 20, 30], [5.0, 21.0, 19.0, 20.5], edge_of_stability(0.1))
    assert path.fraction_above == 0.5
    assert path.summary()["last edge"] == 20
    assert path.rows()[1] == {"step": 10, "lambda_max": 21.0, "edge": 20.0}
    assert "50 %" in path.plot().get_title("left")


def test_the_edge_follows_the_schedule_and_may_be_unknown():
    path = sharpness_path([0, 1], [5.0, 6.0], [4.0, 8.0])
    assert path.edge.tolist() == [4, 8] and path.fraction_above == 0.5
    without = sharpness_path([0, 1], [-5.0, 6.0])
    assert np.isnan(without.fraction_above)
    assert without.plot().get_title("left") == "Sharpness from -5 to 6"


def test_from_the_rows_of_a_run():
    rows = [
        {"kind": "train", "step": 2, "loss": 1.0},
        {"step": 4, "curvature_and_noise": {"lambda_max": 3.0, "edge_of_stability": 20.0}},
        {"step": 8, "curvature_and_noise": {"lambda_max": 5.0}},
    ]
    path = logged_sharpness(rows)
    assert path.steps.tolist() == [4, 8] and path.lambda_max.tolist() == [3, 5]
    np.testing.assert_equal(path.edge, [20, np.nan])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "steps is 'empty'; allowed: one step or more"),
        (([1, 1], [1.0, 2.0]), r"steps is \[1, 1\]; allowed: increasing"),
        (
            ([1, 2], [1.0]),
            r"lambda_max is 'of shape \(1,\)'; allowed: one number",
        ),
        (([1, 2], [1.0, 2.0], [1.0]), r"edge is 'of shape \(1,\)'"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        sharpness_path(*arguments)


def test_a_run_without_sharpness_is_refused():
    with pytest.raises(
        InputError,
        match="rows without sharpness; allowed: those of a run",
    ):
        logged_sharpness([{"step": 1, "loss": 2.0}])
