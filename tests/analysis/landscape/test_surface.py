"""Losses on lines, between networks and on planes: bowls and double wells in closed form, networks evaluated by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis.landscape.directions import _direction, random_direction
from deepjax.analysis.landscape.surface import (
    Plane,
    _losses,
    linear_interpolation,
    loss_line,
    loss_plane,
)
from deepjax.analysis.landscape.trajectory import trajectory
from deepjax.errors import InputError


class Point(nn.Module):
    """Returns its parameters, so that a loss is a function of them that can be written down."""

    size: int = 2

    @nn.compact
    def __call__(self, x):
        return self.param("w", nn.initializers.normal(1.0), (self.size,))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(4, name="dense")(x)), None


class Cnn(nn.Module):
    """A convolution with batch norm and a scanned body."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=1e-9, name="norm")(x)).mean(
            (1, 2)
        )
        x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)(
            name="blocks"
        )(x, None)
        return nn.Dense(3, name="head")(x)


HESSIAN = np.array([[3.0, 1.0], [1.0, 2.0]])
NOTHING = (jnp.zeros((2, 1)), None)


def bowl(w, _):
    return jnp.float32(0.5) * w @ jnp.asarray(HESSIAN, jnp.float32) @ w + w[0]


def saddle(w, _):
    return jnp.square(w[0]) - jnp.square(w[1])


def double_well(w, _):
    """Minima near -1 and 1; between them the barrier above their straight line is exactly 1, in the middle."""
    return jnp.square(jnp.square(w[0]) - 1) + 0.3 * w[0] + jnp.square(w[1])


def at(*w):
    return {"params": {"w": jnp.asarray(w, jnp.float32)}}


def batch_of(size=12, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((size, 6, 6, 1), np.float32)), jnp.asarray(
        rng.integers(0, 3, size)
    )


def init(seed=0):
    """With running statistics that are not the batch's, others for each seed, and no dead units."""
    variables, rng = Cnn().init(jax.random.key(seed), batch_of()[0]), np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.uniform(0, 0.8, leaf.shape), jnp.float32), variables
    )


def by_hand(variables, batch, bn="running"):
    """(loss, accuracy), written out without the instrument."""
    logits, _ = Cnn().apply(variables, batch[0], train=bn == "batch", mutable=["batch_stats"])
    loss = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(batch[1])), batch[1]].mean()
    return float(loss), float((np.asarray(logits).argmax(1) == np.asarray(batch[1])).mean())


def moved(variables, direction, step):
    return {
        **variables,
        "params": jax.tree.map(lambda leaf, way: leaf + step * way, variables["params"], direction),
    }


def norms(leaf, inside):
    return np.sqrt(np.square(np.asarray(leaf, float)).sum(inside))


# Directions ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "inside"), [("conv", (0, 1, 2)), ("head", 0), ("blocks/dense", 1)]
)
def test_each_filter_is_as_long_as_the_networks_own(layer, inside):
    params = init()["params"]
    found = random_direction({"params": params}, jax.random.key(1), axes={"blocks": (0, -1)})
    for part in layer.split("/"):
        params, found = params[part], found[part]
    np.testing.assert_allclose(
        norms(found["kernel"], inside), norms(params["kernel"], inside), rtol=1e-5
    )
    np.testing.assert_array_equal(found.get("bias", 0), 0)


def test_other_lengths_and_what_does_not_move():
    params = init()["params"]
    layer, plain, one = (
        random_direction({"params": params}, jax.random.key(1), kind, axes=axes)
        for kind, axes in (("layer", {"blocks": (0, -1)}), (None, None), ("filter", None))
    )
    dense = ("blocks", "dense", "kernel")
    of = {
        name: tree[dense[0]][dense[1]][dense[2]]
        for name, tree in (("own", params), ("layer", layer), ("one", one))
    }
    np.testing.assert_allclose(
        norms(of["layer"], (1, 2)), norms(of["own"], (1, 2)), rtol=1e-5
    )  # a layer inside the scan
    np.testing.assert_allclose(
        norms(of["one"], 1), norms(of["own"], 1), rtol=1e-5
    )  # the bias (2, 4) shows the axis of the scan
    assert np.std(plain["conv"]["kernel"]) == pytest.approx(1, rel=0.4)
    for tree in (layer, plain, one):
        assert not np.any(tree["norm"]["scale"]) and not np.any(tree["blocks"]["dense"]["bias"])


def test_filter_normalised_lines_do_not_see_the_scale_of_a_normalised_network():
    """Li et al. 2018, section 4: ten times the weights before batch norm is the same network, and has the same picture."""
    variables, batch, key = init(), batch_of(), jax.random.key(2)
    large = moved(
        variables,
        {**jax.tree.map(jnp.zeros_like, variables["params"]), "conv": variables["params"]["conv"]},
        9.0,
    )

    def line(variables, kind):
        return loss_line(
            Cnn(),
            variables,
            batch,
            random_direction(variables, key, kind),
            at=[-1, -0.5, 0.5, 1],
            bn="batch",
        ).loss

    np.testing.assert_allclose(line(variables, "filter"), line(large, "filter"), rtol=1e-4)
    assert not np.allclose(line(variables, None), line(large, None), rtol=0.01)


# Lines and planes ---------------------------------------------------------------------------------------------------------------


def test_a_bowl_has_its_parabola_and_its_plane():
    start, x, y, steps = (
        np.array([0.4, -0.2]),
        np.array([1.0, 0.5]),
        np.array([-0.3, 1.0]),
        np.linspace(-1, 1, 9),
    )

    def exact(*terms):
        w = start + sum(step * way for step, way in terms)
        return 0.5 * w @ HESSIAN @ w + w[0]

    ways = [at(*way)["params"] for way in (x, y)]
    line = loss_line(Point(), at(*start), NOTHING, ways[0], at=steps, loss=bowl)
    np.testing.assert_allclose(line.loss, [exact((a, x)) for a in steps], rtol=1e-5)
    assert (
        line.accuracy is None
        and np.isnan(line.barrier)
        and np.isnan(line.barrier_at)
        and np.isnan(line.error_barrier)
    )
    plane = loss_plane(
        Point(), at(*start), NOTHING, *ways, grid=(steps, steps[::2] / 2), loss=bowl, chunk=4
    )
    np.testing.assert_allclose(
        plane.loss,
        [[exact((a, x), (b, y)) for a in steps] for b in steps[::2] / 2],
        rtol=1e-4,
        atol=1e-6,
    )
    row = plane.rows()[10]
    assert (row["x"], row["y"]) == (steps[1], steps[2] / 2) and row["loss"] == plane.loss[1, 1]


@pytest.mark.parametrize(
    ("loss", "share"), [(bowl, 0), (saddle, 1), (double_well, 1 / np.sqrt(3) / 1.5)]
)
def test_the_share_of_the_plane_that_curves_down(loss, share):
    """The double well's second derivative is 12 x^2 - 4: below 0 where |x| < 1 / sqrt(3), of 1.5 on either side."""
    ways, steps = (at(1, 0)["params"], at(0, 1)["params"]), np.linspace(-1.5, 1.5, 101)
    plane = loss_plane(
        Point(), at(0, 0), NOTHING, *ways, grid=(steps, steps[40:61]), loss=loss, chunk=101
    )
    assert plane.concave == pytest.approx(share, abs=0.015)


def test_a_flat_plane_curves_nowhere_and_infinities_are_left_out():
    steps, values = np.linspace(-1, 1, 5), np.full((5, 5), 2.0)
    values[2, 2] += 1e-7
    flat = Plane("running", False, 1, steps, steps, values, None, None)
    assert flat.concave == 0
    values[:] = np.inf
    assert np.isnan(flat.concave) and flat.plot().get_title("left").startswith("Loss from")


@pytest.mark.parametrize("bn", ["running", "batch"])
def test_loss_and_accuracy_are_those_of_the_network(bn):
    variables, batch = init(), batch_of()
    x, y = (random_direction(variables, jax.random.key(seed)) for seed in (1, 2))
    line = loss_line(Cnn(), variables, batch, x, at=[-0.5, 0, 0.7], bn=bn)
    plane = loss_plane(
        Cnn(), variables, batch, x, y, grid=([-0.5, 0, 0.5], [-1, 0, 1]), bn=bn, chunk=2
    )
    for step, loss, accuracy in zip(line.at, line.loss, line.accuracy, strict=True):
        assert (loss, accuracy) == pytest.approx(
            by_hand(moved(variables, x, step), batch, bn), rel=1e-5
        )
    assert (plane.loss[1, 1], plane.accuracy[1, 1]) == pytest.approx(
        by_hand(variables, batch, bn), rel=1e-5
    )
    corner = by_hand(moved(moved(variables, x, 0.5), y, -1.0), batch, bn)
    assert (plane.loss[0, 2], plane.accuracy[0, 2]) == pytest.approx(corner, rel=1e-5)
    assert line.normalised and line.bn == plane.bn == bn and line.examples == 12


@pytest.mark.parametrize("bn", ["running", "batch"])
def test_a_list_of_batches_is_their_mean_whatever_the_chunk(bn):
    variables, batches, seen = init(), [batch_of(4, seed) for seed in range(3)], []
    direction = random_direction(variables, jax.random.key(1))
    one, many = (
        loss_line(
            Cnn(),
            variables,
            batches,
            direction,
            at=np.linspace(-1, 1, 5),
            bn=bn,
            chunk=chunk,
            progress=progress,
        )
        for chunk, progress in ((1, None), (2, lambda *done: seen.append(done)))
    )
    np.testing.assert_allclose(one.loss, many.loss, rtol=1e-5)
    assert seen == [(2, 5), (4, 5), (5, 5)] and one.examples == 12
    hand = np.mean([by_hand(moved(variables, direction, -0.5), batch, bn) for batch in batches], 0)
    assert (one.loss[1], one.accuracy[1]) == pytest.approx(hand, rel=1e-5)


# Between two networks -----------------------------------------------------------------------------------------------------------


def test_the_barrier_of_a_double_well():
    line = linear_interpolation(
        Point(), at(-1, 0), at(1, 0), NOTHING, at=np.linspace(-0.5, 1.5, 41), loss=double_well
    )
    assert line.barrier == pytest.approx(1, rel=1e-6) and line.barrier_at == pytest.approx(0.5)
    assert linear_interpolation(
        Point(), at(1, 0), at(1, 1), NOTHING, loss=double_well
    ).barrier == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bn", ["running", "batch"])
def test_the_way_between_two_networks_written_out_by_hand(bn):
    a, b, batch = init(0), init(1), batch_of()
    line = linear_interpolation(Cnn(), a, b, batch, at=[0, 0.25, 0.5, 1], bn=bn)
    hand = [
        by_hand(jax.tree.map(lambda x, y, t=t: (1 - t) * x + t * y, a, b), batch, bn)
        for t in line.at.tolist()
    ]
    np.testing.assert_allclose(list(zip(line.loss, line.accuracy, strict=True)), hand, rtol=1e-5)
    above = [
        loss - ((1 - t) * hand[0][0] + t * hand[-1][0])
        for t, (loss, _) in zip(line.at, hand, strict=True)
    ]
    assert line.barrier == pytest.approx(max(above), abs=1e-5)
    errors = [
        1 - accuracy - ((1 - t) * (1 - hand[0][1]) + t * (1 - hand[-1][1]))
        for t, (_, accuracy) in zip(line.at, hand, strict=True)
    ]
    assert line.error_barrier == pytest.approx(max(errors), abs=1e-5)
    if (
        bn == "running"
    ):  # the interpolated statistics count: with b's alone the middle is another network
        middle = jax.tree.map(lambda x, y: 0.5 * x + 0.5 * y, a, b)
        assert (
            abs(by_hand({**middle, "batch_stats": b["batch_stats"]}, batch)[0] - line.loss[2])
            > 1e-3
        )


# Trajectories -------------------------------------------------------------------------------------------------------------------


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
    np.testing.assert_allclose(found.shares, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        np.abs(found.coordinates[:, 0]), 5 * np.array([5, 4, 3, 0]), rtol=1e-5
    )  # |way| = 5
    np.testing.assert_allclose(found.coordinates[:, 1], 0)
    assert not np.any(flat_of(found.directions[1])) and found.parameters == 5


def test_a_planar_path_is_kept_whole():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((5, 2)))[0].T
    angles = np.linspace(0, 4, 9)
    points = np.stack([3 * np.cos(angles), np.sin(angles)], axis=1) @ basis + rng.standard_normal(5)
    found = trajectory([{"params": tree, "batch_stats": {}} for tree in path_of(points)])
    assert found.share == pytest.approx(1, abs=1e-6)
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
    np.testing.assert_allclose(found.shares[:5], values**2 / np.sum(values**2), rtol=1e-4)
    signs = np.sign(np.sum(rows[:2] * np.stack([flat_of(way) for way in found.directions]), axis=1))
    np.testing.assert_allclose(
        found.coordinates, (points - points[-1]) @ rows[:2].T * signs, atol=1e-4
    )


def test_a_random_walk_looks_planar_too():
    """Antognini and Sohl-Dickstein 2018: 6 / pi^2 = 60.8 % in the first direction, and a quarter of that in the second."""
    walk = np.random.default_rng(0).standard_normal((60, 20000)).cumsum(0)
    found = trajectory([{"w": jnp.asarray(point, jnp.float32)} for point in walk])
    assert found.share == pytest.approx(found.random_walk, abs=0.01)
    assert found.random_walk == pytest.approx(6 / np.pi**2 * 1.25, abs=0.02)


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


# What is shared -----------------------------------------------------------------------------------------------------------------


def test_nothing_compiles_twice():
    def everything(variables, batch, points):
        x, y = (random_direction(variables, jax.random.key(seed)) for seed in (1, 2))
        loss_line(Cnn(), variables, batch, x, at=np.linspace(-1, 1, points))
        linear_interpolation(
            Cnn(), variables, moved(variables, x, 1.0), batch, at=np.linspace(0, 1, points)
        )
        loss_plane(Cnn(), variables, batch, x, y, grid=(np.linspace(-1, 1, points),) * 2, chunk=2)
        return _losses._cache_size(), _direction._cache_size()

    before = everything(init(), batch_of(), 3)
    assert everything(jax.tree.map(lambda leaf: 2 * leaf, init()), batch_of(seed=1), 4) == before


def test_figures_say_what_was_found():
    between = linear_interpolation(Point(), at(-1, 0), at(1, 0), NOTHING, loss=double_well)
    ax = between.plot()
    assert ax.get_title("left").startswith("Barrier of the loss 1") and between.plot(ax) is ax
    line = loss_line(Point(), at(0, 0), NOTHING, at(1, 0)["params"], loss=bowl, at=[-1, 0, 1])
    assert line.plot().get_title("left").startswith("Loss from 0 at 0 to 2.5 at 1\n2 examples")
    assert line.rows()[2] == {"at": 1.0, "loss": 2.5, "accuracy": None}
    path = trajectory([at(*point) for point in ((-1, 0.5), (-0.5, 0.2), (0.5, 0.1), (1, 0))])
    assert path.plot().get_title("left").startswith("100 % of the path's variance")
    grid = path.grid(9)
    plane = loss_plane(
        Point(), at(1, 0), NOTHING, *path.directions, grid=grid, path=path, loss=double_well
    )
    ax = plane.plot()
    assert (
        f"{100 * plane.concave:.3g} % of the plane curves down" in ax.get_title("left")
        and "of the variance" in ax.get_xlabel()
    )
    assert len(path.rows()) == 4 and path.rows()[-1] == {"point": 3, "x": 0.0, "y": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": [0.0]}, "at is 'of shape \\(1,\\)'; allowed: two or more finite numbers"),
        ({"bn": "frozen"}, "bn is 'frozen'; allowed: 'running', 'batch'"),
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
def test_lines_that_cannot_be_drawn(options, message):
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
            lambda v: linear_interpolation(Cnn(), v, v, batch_of(), at=[0, 0.5]),
            "at is 'without 0 or 1'",
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
def test_what_else_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(init())
