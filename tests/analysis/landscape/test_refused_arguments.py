"""What lines, planes, directions and trajectories refuse, in one line."""

import jax
import jax.numpy as jnp
import pytest

from deepjax.analysis.landscape.directions import random_direction
from deepjax.analysis.landscape.line import linear_interpolation, loss_line
from deepjax.analysis.landscape.plane import loss_plane
from deepjax.analysis.landscape.trajectory import trajectory
from deepjax.errors import InputError
from tests.analysis.landscape.landscape_cases import Cnn, batch_of, init


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": [0.0]}, "alphas is 'of shape \\(1,\\)'; allowed: two or more finite numbers"),
        ({"mode": "frozen"}, "mode is 'frozen'; allowed: EVAL, TRAIN or Ghost"),
        ({"chunk": 0}, "chunk is 0; allowed: a number of points"),
        (
            {"loss": lambda outputs, batch: outputs},
            r"loss returned the shape \(12, 3\); allowed: a scalar",
        ),
        (
            {"batch": (jnp.ones((12, 6, 6, 2)), batch_of()[1])},
            "Cnn cannot take a batch with inputs of shape",
        ),
        ({"batch": [batch_of(4), batch_of(6)]}, "batches of one size"),
        ({"direction": {"head": {}}}, "direction is a tree without 'blocks/dense/bias'"),
        ({"direction": 1.0}, "direction is 'float'; allowed: a tree like the parameters"),
        ({"variables": {"batch_stats": {}}}, "'params' is missing"),
    ],
)
def test_a_line_refuses(options, message):
    variables = init()
    given = {
        "variables": variables,
        "batch": batch_of(),
        "direction": variables["params"],
        **options,
    }
    with pytest.raises(InputError, match=message):
        loss_line(
            Cnn(), given.pop("variables"), given.pop("batch"), given.pop("direction"), **given
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda v: random_direction(v, jax.random.key(0), "filters"),
            "normalise is 'filters'; allowed: 'filter', 'layer', None",
        ),
        (
            lambda v: random_direction(v, jax.random.key(0), axes={"bloks": (0, -1)}),
            "'bloks' is unknown; did you mean 'blocks'",
        ),
        (
            lambda v: random_direction(v, jax.random.key(0), axes={"head": (2,)}),
            r"axes of head/kernel is \(2,\); allowed: different",
        ),
        (
            lambda v: linear_interpolation(Cnn(), v, v, batch_of(), alphas=[0, 0.5]),
            "alphas is 'without 0 or 1'",
        ),
        (
            lambda v: linear_interpolation(Cnn(), v, {"params": v["params"]}, batch_of()),
            r"variables_b is \"with \['params'\]\"",
        ),
        (
            lambda v: linear_interpolation(Cnn(), v, {**v, "params": {}}, batch_of()),
            "variables_b is a tree without 'params/blocks/dense/bias'",
        ),
        (
            lambda v: loss_plane(
                Cnn(), v, batch_of(), v["params"], v["params"], grid=([0, 1, 3],) * 2
            ),
            "rise evenly",
        ),
        (
            lambda v: loss_plane(Cnn(), v, batch_of(), v["params"], v["params"], grid=([0, 1, 2],)),
            "grid is 'of 1 parts'",
        ),
        (lambda v: trajectory([v, v]), "points is '2 of them'; allowed: three or more"),
        (lambda v: trajectory([v, v, v]), "points is 'all the same'; allowed: a path that moves"),
        (
            lambda v: trajectory([v, {"params": {"head": v["params"]["head"]}}, v]),
            "point 1 is a tree without 'blocks/dense/bias'",
        ),
        (
            lambda v: trajectory([v, jax.tree.map(lambda leaf: leaf * jnp.nan, v), v]),
            "points is 'with NaN or infinity'",
        ),
    ],
)
def test_what_the_others_refuse(call, message):
    with pytest.raises(InputError, match=message):
        call(init())
