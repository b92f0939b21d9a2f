"""Losses on lines, between networks and on planes: closed forms, and networks evaluated by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis.core.mode import EVAL, TRAIN
from deepjax.analysis.landscape.directions import random_direction
from deepjax.analysis.landscape.line import linear_interpolation, loss_line
from deepjax.analysis.landscape.plane import LossPlane, loss_plane
from deepjax.analysis.landscape.trajectory import trajectory
from deepjax.analysis.network.function import from_function
from tests.analysis.landscape.landscape_cases import (
    HESSIAN,
    NOTHING,
    Cnn,
    Point,
    at,
    batch_of,
    bowl,
    by_hand,
    double_well,
    init,
    moved,
    saddle,
)
from tests.zoo import no_compilation


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
    line = loss_line(Point(), at(*start), NOTHING, ways[0], alphas=steps, loss=bowl)
    np.testing.assert_allclose(line.loss, [exact((a, x)) for a in steps], rtol=1e-5)
    assert (
        line.accuracy is None
        and np.isnan(line.barrier)
        and np.isnan(line.barrier_alpha)
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
    ("loss", "fraction"), [(bowl, 0), (saddle, 1), (double_well, 1 / np.sqrt(3) / 1.5)]
)
def test_the_fraction_of_the_plane_that_curves_down(loss, fraction):
    """The double well's second derivative 12 x^2 - 4 is negative for |x| < 1 / sqrt(3)."""
    ways, steps = (at(1, 0)["params"], at(0, 1)["params"]), np.linspace(-1.5, 1.5, 101)
    plane = loss_plane(
        Point(), at(0, 0), NOTHING, *ways, grid=(steps, steps[40:61]), loss=loss, chunk=101
    )
    assert plane.concave_fraction == pytest.approx(fraction, abs=0.015)


def test_a_flat_plane_curves_nowhere_and_infinities_are_ignored():
    steps, values = np.linspace(-1, 1, 5), np.full((5, 5), 2.0)
    values[2, 2] += 1e-7
    flat = LossPlane("running", False, 1, steps, steps, values, None, None)
    assert flat.concave_fraction == 0
    values[:] = np.inf
    assert np.isnan(flat.concave_fraction) and flat.plot().get_title("left").startswith("Loss from")


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_loss_and_accuracy_are_those_of_the_network(mode):
    variables, batch = init(), batch_of()
    x, y = (random_direction(variables, jax.random.key(seed)) for seed in (1, 2))
    line = loss_line(Cnn(), variables, batch, x, alphas=[-0.5, 0, 0.7], mode=mode)
    plane = loss_plane(
        Cnn(), variables, batch, x, y, grid=([-0.5, 0, 0.5], [-1, 0, 1]), mode=mode, chunk=2
    )
    for step, loss, accuracy in zip(line.alphas, line.loss, line.accuracy, strict=True):
        assert (loss, accuracy) == pytest.approx(
            by_hand(moved(variables, x, step), batch, mode), rel=1e-5
        )
    assert (plane.loss[1, 1], plane.accuracy[1, 1]) == pytest.approx(
        by_hand(variables, batch, mode), rel=1e-5
    )
    corner = by_hand(moved(moved(variables, x, 0.5), y, -1.0), batch, mode)
    assert (plane.loss[0, 2], plane.accuracy[0, 2]) == pytest.approx(corner, rel=1e-5)
    assert line.has_batch_norm and line.mode == plane.mode == mode and line.examples == 12


def test_labels_in_8_bits_are_compared_as_they_are():
    """Class 256 is not class 0."""
    network = from_function(lambda params, x: x * params)
    outputs = jax.nn.one_hot(jnp.full(2, 256), 300)
    batch = (outputs, jnp.zeros(2, jnp.uint8))
    assert loss_line(network, jnp.ones(()), batch, jnp.ones(()), alphas=[0.0, 1.0]).accuracy[0] == 0


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_a_list_of_batches_is_their_mean_whatever_the_chunk(mode):
    variables, batches, seen = init(), [batch_of(4, seed) for seed in range(3)], []
    direction = random_direction(variables, jax.random.key(1))
    one, many = (
        loss_line(
            Cnn(),
            variables,
            batches,
            direction,
            alphas=np.linspace(-1, 1, 5),
            mode=mode,
            chunk=chunk,
            progress=progress,
        )
        for chunk, progress in ((1, None), (2, lambda *done: seen.append(done)))
    )
    np.testing.assert_allclose(one.loss, many.loss, rtol=1e-5)
    assert seen == [(2, 5), (4, 5), (5, 5)] and one.examples == 12
    hand = np.mean(
        [by_hand(moved(variables, direction, -0.5), batch, mode) for batch in batches], 0
    )
    assert (one.loss[1], one.accuracy[1]) == pytest.approx(hand, rel=1e-5)


def test_the_barrier_of_a_double_well():
    line = linear_interpolation(
        Point(), at(-1, 0), at(1, 0), NOTHING, alphas=np.linspace(-0.5, 1.5, 41), loss=double_well
    )
    assert line.barrier == pytest.approx(1, rel=1e-6) and line.barrier_alpha == pytest.approx(0.5)
    assert linear_interpolation(
        Point(), at(1, 0), at(1, 1), NOTHING, loss=double_well
    ).barrier == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_the_line_between_two_networks_evaluated_by_hand(mode):
    a, b, batch = init(0), init(1), batch_of()
    line = linear_interpolation(Cnn(), a, b, batch, alphas=[0, 0.25, 0.5, 1], mode=mode)
    hand = [
        by_hand(jax.tree.map(lambda x, y, t=t: (1 - t) * x + t * y, a, b), batch, mode)
        for t in line.alphas.tolist()
    ]
    np.testing.assert_allclose(list(zip(line.loss, line.accuracy, strict=True)), hand, rtol=1e-5)
    above = [
        loss - ((1 - t) * hand[0][0] + t * hand[-1][0])
        for t, (loss, _) in zip(line.alphas, hand, strict=True)
    ]
    assert line.barrier == pytest.approx(max(above), abs=1e-5)
    errors = [
        1 - accuracy - ((1 - t) * (1 - hand[0][1]) + t * (1 - hand[-1][1]))
        for t, (_, accuracy) in zip(line.alphas, hand, strict=True)
    ]
    assert line.error_barrier == pytest.approx(max(errors), abs=1e-5)
    if mode == EVAL:  # the statistics are interpolated: with b's the middle is another network
        middle = jax.tree.map(lambda x, y: 0.5 * x + 0.5 * y, a, b)
        other, _ = by_hand({**middle, "batch_stats": b["batch_stats"]}, batch)
        assert abs(other - line.loss[2]) > 1e-3


def test_nothing_compiles_twice():
    def everything(variables, batch, points):
        x, y = (random_direction(variables, jax.random.key(seed)) for seed in (1, 2))
        loss_line(Cnn(), variables, batch, x, alphas=np.linspace(-1, 1, points))
        linear_interpolation(
            Cnn(), variables, moved(variables, x, 1.0), batch, alphas=np.linspace(0, 1, points)
        )
        loss_plane(Cnn(), variables, batch, x, y, grid=(np.linspace(-1, 1, points),) * 2, chunk=2)

    everything(init(), batch_of(), 3)
    other = jax.tree.map(lambda leaf: 2 * leaf, init()), batch_of(seed=1)
    with no_compilation():
        everything(*other, 4)


def test_figures_state_the_result():
    between = linear_interpolation(Point(), at(-1, 0), at(1, 0), NOTHING, loss=double_well)
    ax = between.plot()
    assert ax.get_title("left").startswith("Barrier of the loss 1") and between.plot(ax) is ax
    line = loss_line(Point(), at(0, 0), NOTHING, at(1, 0)["params"], loss=bowl, alphas=[-1, 0, 1])
    assert line.plot().get_title("left").startswith("Loss from 0 at 0 to 2.5 at 1\n2 examples")
    assert line.rows()[2] == {"alpha": 1.0, "loss": 2.5, "accuracy": None}
    path = trajectory([at(*point) for point in ((-1, 0.5), (-0.5, 0.2), (0.5, 0.1), (1, 0))])
    assert path.plot().get_title("left").startswith("100 % of the path's variance")
    grid = path.grid(9)
    plane = loss_plane(
        Point(), at(1, 0), NOTHING, *path.directions, grid=grid, path=path, loss=double_well
    )
    ax = plane.plot()
    assert (
        f"{100 * plane.concave_fraction:.3g} % of the plane curves down" in ax.get_title("left")
        and "of the variance" in ax.get_xlabel()
    )
    assert len(path.rows()) == 4 and path.rows()[-1] == {"point": 3, "x": 0.0, "y": 0.0}
