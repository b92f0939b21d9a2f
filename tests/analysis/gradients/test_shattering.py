"""Shattering: Balduzzi's laws of depth on wide networks, and a backward pass in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import EVAL, TRAIN
from deepjax.analysis.gradients.shattering import (
    autocorrelation,
    gradient_line,
    shattering,
)
from deepjax.errors import InputError
from tests.analysis.counting import CountCalls


class Block(nn.Module):
    """One layer of ReLU with batch norm before it, and around both a shortcut or none."""

    residual: bool
    train: bool

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.relu(nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(x))
        y = nn.Dense(x.shape[-1], use_bias=False, kernel_init=nn.initializers.he_normal())(y)
        return (x + y if self.residual else y), None


class Deep(nn.Module):
    depth: int
    residual: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(x.shape[-1], use_bias=False, name="first")(x)
        options = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=self.depth, **options)(self.residual, train, name="blocks")(
            x, None
        )
        return nn.Dense(1, use_bias=False, name="last")(x)


class Small(nn.Module):
    """Two layers with batch norm and ReLU, and an output."""

    @nn.compact
    def __call__(self, x, train=False):
        for i in range(2):
            x = nn.Dense(24, name=f"dense{i}")(x)
            x = nn.relu(
                nn.BatchNorm(use_running_average=not train, momentum=0.8, name=f"norm{i}")(x)
            )
        return nn.Dense(1, name="last")(x)


class Slopes(nn.Module):
    """A function of one number whose derivative at 0, 1, 2, ... is a parameter each."""

    count: int

    @nn.compact
    def __call__(self, x):
        slopes = self.param("slopes", nn.initializers.normal(1.0), (self.count,))
        return slopes[jnp.round(x[:, 0]).astype(jnp.int32)] * x[:, 0]


def gaussian(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def cosine(depth, residual, examples, seeds, width=512):
    model, found = Deep(depth, residual), []
    for seed in range(seeds):
        x = gaussian((examples, width), seed)
        found.append(shattering(model, jax.jit(model.init)(jax.random.key(seed), x), x).cosine)
    return np.mean(found)


@pytest.mark.parametrize("depth", [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_plain_networks_halve_it_with_every_layer(depth):
    """Balduzzi et al. 2017, Theorem 1: 1 / 2^L of an infinitely wide network.

    Over eight seeds the ratio to it is 0.99, 0.95, 0.92, 1.01 (each to 0.03) at width 512, 0.99 to
    0.95 at 1,024, and 0.99, 0.99, 0.99, 0.98 (to 0.015) at 2,048.
    """
    assert cosine(depth, residual=False, examples=256, seeds=5, width=2048) == pytest.approx(
        0.5**depth, rel=0.05
    )


def test_residual_networks_follow_a_power_law():
    """Their Theorem 3: about 1 / sqrt(L); with NumPy: 0.447 at 4, 0.198 at 16, 0.094 at 48."""
    depths = [4, 16, 48]
    found = [cosine(depth, residual=True, examples=96, seeds=1) for depth in depths]
    assert -0.75 < np.polyfit(np.log(depths), np.log(found), 1)[0] < -0.4
    np.testing.assert_allclose(found, [0.447, 0.198, 0.094], rtol=0.15)


def by_hand(variables, x, train):
    """Gradient of the summed output by each input; batch norm is a fixed scale and shift."""
    params, running, masks = variables["params"], variables["batch_stats"], []
    x = np.asarray(x, np.float64)
    for i in range(2):
        x = x @ np.asarray(params[f"dense{i}"]["kernel"]) + np.asarray(params[f"dense{i}"]["bias"])
        old = running[f"norm{i}"]
        mean, variance = (
            (x.mean(0), x.var(0)) if train else (np.asarray(old["mean"]), np.asarray(old["var"]))
        )
        scale = np.asarray(params[f"norm{i}"]["scale"]) / np.sqrt(variance + 1e-5)
        x = (x - mean) * scale + np.asarray(params[f"norm{i}"]["bias"])
        masks.append((x > 0) * scale)
        x = np.maximum(x, 0)
    gradient = np.ones((len(x), 1)) @ np.asarray(params["last"]["kernel"]).T
    for i in (1, 0):
        gradient = (gradient * masks[i]) @ np.asarray(params[f"dense{i}"]["kernel"]).T
    return gradient


@pytest.mark.parametrize("mode", [TRAIN, EVAL])
def test_a_backward_pass_written_out(mode):
    x = 3 * gaussian((12, 5)) + 1
    draw = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(draw.uniform(-0.4, 0.6, leaf.shape), jnp.float32),
        Small().init(jax.random.key(0), x),
    )
    expected = by_hand(variables, x, mode.train)
    found = shattering(Small(), variables, x, mode=mode)
    above = np.triu_indices(12, 1)
    units = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.cosines, units @ units.T, atol=1e-4)
    assert found.cosine == pytest.approx((units @ units.T)[above].mean(), abs=1e-4)
    assert found.correlation == pytest.approx(np.corrcoef(expected)[above].mean(), abs=1e-4)
    assert found.summary()["cosine"] == found.cosine and found.zero_gradients == 0
    rest = found.cosines[0, 1:]
    assert found.rows()[0] == {
        "example": 0,
        "mean cosine": pytest.approx(rest.mean()),
        "min cosine": rest.min(),
        "max cosine": rest.max(),
    }


def test_dropout_is_off():
    class Dropped(nn.Module):
        rate: float

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(self.rate, deterministic=not train)(nn.Dense(16, name="dense")(x))
            return nn.Dense(1, name="last")(
                nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
            )

    x = gaussian((16, 5))
    variables = Dropped(0.0).init(jax.random.key(0), x)
    found = [shattering(Dropped(rate), variables, x).cosines for rate in (0.0, 0.5)]
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_an_example_without_gradient_is_excluded():
    class Relu(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Dense(3, use_bias=False, kernel_init=nn.initializers.ones)(x))

    x = jnp.array([[1.0, 1.0], [2.0, 3.0], [-1.0, -1.0]])
    found = shattering(Relu(), Relu().init(jax.random.key(0), x), x)
    assert (
        found.zero_gradients == 1
        and found.cosine == pytest.approx(1)
        and np.isnan(found.cosines[2]).all()
    )


def test_the_line_against_numpy():
    points, model = 64, Slopes(64)
    x = jnp.linspace(0, points - 1, points)[:, None]
    variables = model.init(jax.random.key(0), x)
    slopes = np.asarray(variables["params"]["slopes"], np.float64)
    found = gradient_line(model, variables, jnp.zeros(1), jnp.full(1, points - 1.0), points)
    np.testing.assert_allclose(found.gradient, slopes, rtol=1e-6)
    centred = slopes - slopes.mean()
    expected = np.correlate(centred, centred, "full")[points - 1 :][: points // 2 + 1] / (
        centred @ centred
    )
    np.testing.assert_allclose(found.autocorrelation, expected, atol=1e-6)
    assert found.spacing == pytest.approx(1) and found.rows()[3]["distance"] == pytest.approx(3)


def test_the_gradient_is_along_the_line():
    """Of x^2 + 10 y along (3, 4) / 5, at a distance s from the origin: 2 (3 s / 5) (3 / 5) + 8."""

    class Bowl(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.param("one", nn.initializers.ones, ()) * (
                jnp.square(x[:, 0]) + 10 * x[:, 1]
            )

    variables = Bowl().init(jax.random.key(0), jnp.zeros((1, 2)))
    found = gradient_line(Bowl(), variables, jnp.zeros(2), jnp.array([3.0, 4.0]), 11)
    np.testing.assert_allclose(found.gradient, 0.72 * np.linspace(0, 5, 11) + 8, rtol=1e-6)
    assert found.spacing == pytest.approx(0.5)


def test_white_noise_stays_in_its_band():
    noise = np.random.default_rng(0).standard_normal((400, 256))
    band = 1.96 / math.sqrt(256)
    found = np.array([autocorrelation(each, 16)[1:] for each in noise])
    assert 0.94 < np.mean(np.abs(found) < band) < 0.97
    brown = np.array([autocorrelation(np.cumsum(each), 16)[1:] for each in noise])
    assert np.mean(np.abs(brown) < band) < 0.1
    model = Slopes(256)
    line = gradient_line(
        model,
        model.init(jax.random.key(0), jnp.zeros((1, 1))),
        jnp.zeros(1),
        jnp.full(1, 255.0),
        256,
    )
    assert line.white_noise_bound == pytest.approx(band) and line.autocorrelation[
        0
    ] == pytest.approx(1)
    assert np.isnan(autocorrelation(np.ones(8), 4)).all()


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (gaussian((1, 5)), {}, "batch is 'of 1 example'; allowed: two or more"),
        (gaussian((4, 5)), {"train": False}, "shattering no longer takes train=; use mode=EVAL"),
        ([1.0, 2.0], {}, "batch is a list of 2 inputs of like shapes"),
        (gaussian((4, 7)), {}, r"Small cannot take a batch with inputs of shape \(4, 7\)"),
        (
            gaussian((4, 5)),
            {"output": lambda outputs: outputs},
            r"output returned the shape \(4, 1\)",
        ),
    ],
)
def test_bad_arguments_of_shattering(inputs, options, message):
    with pytest.raises(InputError, match=message):
        shattering(Small(), Small().init(jax.random.key(0), gaussian((4, 5))), inputs, **options)


@pytest.mark.parametrize(
    ("end", "points", "message"),
    [
        (jnp.ones(5), 2, "points is 2; allowed: three or more"),
        (jnp.ones(4), 8, r"end is 'of shape \(4,\)'; allowed: the start's shape \(5,\)"),
        (jnp.zeros(5), 8, "end is 'the start itself'; allowed: another input"),
    ],
)
def test_bad_arguments_of_gradient_line(end, points, message):
    with pytest.raises(InputError, match=message):
        gradient_line(
            Small(), Small().init(jax.random.key(0), gaussian((4, 5))), jnp.zeros(5), end, points
        )


def test_nothing_compiles_twice_and_the_figures_show_the_findings():
    x, output = gaussian((8, 5)), CountCalls(jnp.sum)
    variables = Small().init(jax.random.key(0), x)
    found = shattering(Small(), variables, x, output=output)
    line = gradient_line(Small(), variables, x[0], x[1], 8, output=output)
    traces = output.calls
    shattering(Small(), jax.tree.map(lambda leaf: 2 * leaf, variables), x + 1, output=output)
    gradient_line(Small(), variables, x[2], x[3], 8, output=output)
    assert output.calls == traces
    ax = found.plot()
    assert (
        ax.get_title("left").startswith("Gradients at 8 inputs")
        and f"mean {found.cosine:.3f}" in ax.texts[0].get_text()
    )
    assert sum(bar.get_height() for bar in ax.patches) == 8 * 7 / 2
    ax = line.plot()
    assert (
        ax.get_title("left").startswith("Gradients stay alike for")
        and len(ax.lines[0].get_xdata()) == 5
    )
