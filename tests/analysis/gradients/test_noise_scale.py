"""The noise scale against its closed form and the trace of the full covariance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import EVAL, TRAIN, Ghost
from deepjax.analysis.gradients.noise_scale import noise_scale
from deepjax.analysis.gradients.per_example import per_example_gradients
from deepjax.analysis.network.module import cross_entropy
from deepjax.errors import InputError
from tests.analysis.counting import CountCalls
from tests.analysis.gradients.gradient_networks import Net, images, initialised, layers_of, loop

DIMENSIONS, NOISE = 6, 0.5
OFF = np.linspace(0.1, 1, DIMENSIONS, dtype=np.float32)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, use_bias=False, name="dense")(x)[:, 0]


def half_square(outputs, batch):
    return 0.5 * jnp.mean(jnp.square(outputs - batch[1]))


def regression(count, batches=1, seed=0):
    """Targets w.x + noise, x of unit variance; the network's weights are w + OFF."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batches, count, DIMENSIONS), np.float32)
    weights = rng.standard_normal(DIMENSIONS, np.float32)
    targets = x @ weights + np.float32(math.sqrt(NOISE)) * rng.standard_normal(
        (batches, count), np.float32
    )
    return {"params": {"dense": {"kernel": jnp.asarray(weights + OFF)[:, None]}}}, [
        *zip(x, targets, strict=True)
    ]


def test_linear_regression_has_a_closed_form():
    """The gradient (d.x - e) x of an example has mean d and covariance (|d|^2 + s^2) I + d d^T."""
    square = float(OFF @ OFF)
    trace = DIMENSIONS * (square + NOISE) + square
    variables, batches = regression(32, batches=400)
    found = noise_scale(Linear(), variables, batches, small=8, loss=half_square)
    estimates = np.array(found.estimates)
    error = estimates.std(0, ddof=1) / math.sqrt(len(estimates))
    assert np.all(np.abs(estimates.mean(0) - [square, trace]) < 4 * error)
    assert np.all(error < 0.05 * np.array([square, trace]))  # so that the line above could fail
    assert (
        found.scale == pytest.approx(trace / square, abs=4 * found.standard_error)
        and found.standard_error < 0.1 * found.scale
    )
    assert found.scale == found.rows()[-1]["scale"] and (found.small, found.big) == (8, 32)


def test_the_jackknife_is_the_spread_over_repetitions():
    variables, batches = regression(32, batches=1600)
    found = [
        noise_scale(Linear(), variables, batches[i : i + 80], small=8, loss=half_square)
        for i in range(0, 1600, 80)
    ]
    spread = np.std([each.scale for each in found], ddof=1)
    # Of 20 repetitions the spread is known to a sixth.
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.5)


def test_small_batches_of_one_example_give_the_trace_of_the_full_covariance():
    model, batch = Net(), images(12)
    variables = initialised(model)
    each = per_example_gradients(model, variables, batch, keep=True)
    flat = np.concatenate(
        [leaf.reshape(12, -1) for leaf in jax.tree.leaves(each.gradients)], axis=1
    ).astype(np.float64)
    trace = np.trace(np.cov(flat.T))
    found = noise_scale(model, variables, [batch], small=1)
    assert found.trace_sigma == pytest.approx(trace, rel=1e-4)
    assert sum(row.variance for row in each.layers) == pytest.approx(trace, rel=1e-4)
    assert found.g2 == pytest.approx(np.sum(flat.mean(0) ** 2) - trace / 12, rel=1e-3)
    assert math.isnan(found.standard_error)


@pytest.mark.parametrize(("mode", "ghost"), [(EVAL, 0), (Ghost(2), 2), (Ghost(4), 4), (TRAIN, 4)])
def test_the_estimators_of_mccandlish_appendix_a1(mode, ghost):
    model, batches = Net(), [images(16, seed) for seed in range(2)]
    variables = initialised(model)
    expected = []
    for batch in batches:
        flat = np.concatenate(
            [*layers_of(loop(model, variables, batch, ghost, jax.random.key(0))).values()], axis=1
        )
        # Four small batches of 4 examples.
        small = np.mean(np.sum(flat.reshape(4, -1, flat.shape[1]).mean(1) ** 2, axis=1))
        big = np.sum(flat.mean(0) ** 2)
        expected.append(((16 * big - 4 * small) / (16 - 4), (small - big) / (1 / 4 - 1 / 16)))
    found = noise_scale(model, variables, batches, small=4, mode=mode)
    np.testing.assert_allclose(found.estimates, expected, rtol=1e-3)
    g2, trace = np.mean(expected, axis=0)
    assert found.scale == pytest.approx(trace / g2, rel=1e-3) if g2 > 0 else math.isnan(found.scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small": 16}, "small is 16; allowed: below 16, and a divisor"),
        ({"small": 3}, "small is 3; allowed: below 16, and a divisor"),
        ({"small": 0}, "small is 0"),
        ({"batch": []}, "batch is 'without arrays'; allowed: a batch, or a list"),
        ({"batch": [images(16), images(8)]}, "allowed: batches of one size"),
        ({"train": True}, "no longer takes train=; use mode="),
        ({"mode": Ghost(3)}, "a number of examples that divides the batch of 16"),
        (
            {"mode": Ghost(8)},
            r"mode is Ghost\(8\); allowed: a number of examples that divides small=4",
        ),
    ],
)
def test_bad_arguments_of_noise_scale(options, message):
    model = Net()
    given = {"batch": [images(16)], "small": 4} | options
    with pytest.raises(InputError, match=message):
        noise_scale(model, initialised(model), given.pop("batch"), **given)


def test_nothing_compiles_twice_and_the_figure_shows_the_finding():
    model, loss = Net(), CountCalls(cross_entropy)
    batches = [images(16), images(16, 1)]
    found = noise_scale(model, initialised(model), batches, small=4, loss=loss)
    traces = loss.calls
    noise_scale(model, initialised(model, 1), [images(16, 4)], small=4, loss=loss)
    assert loss.calls == traces
    ax = found.plot()
    assert ax.get_title("left").startswith("Noise scale: ") and len(ax.lines[0].get_xdata()) == 2
