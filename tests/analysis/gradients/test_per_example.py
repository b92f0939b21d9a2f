"""Per-example gradients against a loop over examples, and the noise scale against its closed form and the full covariance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from deepjax.analysis.gradients.per_example import (
    _square_norms,
    _statistics,
    noise_scale,
    per_example_gradients,
)
from deepjax.errors import InputError


class Net(nn.Module):
    """A convolution, batch norm or none, dropout, and a layer that nothing flows through."""

    normalised: bool = True
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), name="second_by_name")(x)
        if self.normalised:
            x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x)).mean((1, 2))
        return nn.Dense(4, name="head")(x) + 0 * nn.Dense(4, name="idle")(x)


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.relu(nn.Dense(5, name="dense")(x)), None


class Lifted(nn.Module):
    """Blocks under a scan or under remat."""

    how: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, name="first")(x.reshape(x.shape[0], -1))
        if self.how == "scan":
            x, _ = nn.scan(
                Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )(name="body")(x, None)
        else:
            x, _ = nn.remat(Body)(name="body")(x)
        return nn.Dense(4, name="head")(x)


def images(count=10, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((count, 4, 4, 2), np.float32)), jnp.asarray(
        rng.integers(0, 4, count)
    )


def initialised(model, seed=0):
    """Running statistics other than 0 and 1, so that it matters which are used."""
    variables = jax.jit(model.init)(jax.random.key(seed), images(1)[0])
    return jax.tree.map(lambda leaf: leaf + 0.3, variables)


def loop(model, variables, batch, size, dropout):
    """The gradient of each group of `size` examples in turn, as (groups, ...) arrays; size 0: each example, in evaluation."""

    @jax.jit
    def gradient(params, x, labels, key):
        def value(params):
            together = {**variables, "params": params}
            if size:
                outputs, _ = model.apply(
                    together, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
                )
            else:
                outputs = model.apply(together, x)
            return -jnp.mean(
                jnp.sum(jax.nn.log_softmax(outputs) * jax.nn.one_hot(labels, 4), axis=-1)
            )

        return jax.grad(value)(params)

    x, labels = (jnp.split(leaf, len(leaf) // max(size, 1)) for leaf in batch)
    keys = [jax.random.fold_in(dropout, i) for i in range(len(x))]
    found = [gradient(variables["params"], *each) for each in zip(x, labels, keys, strict=True)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def layers_of(gradients):
    """(groups, parameters) by layer."""
    found = {}
    for path, leaf in flatten_dict(gradients, sep="/").items():
        found.setdefault(path.rpartition("/")[0], []).append(
            np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        )
    return {layer: np.concatenate(parts, axis=1) for layer, parts in found.items()}


CASES = {
    "frozen statistics": (Net(), "running", 4),  # chunks of 4, 4 and 2
    "ghost batches": (Net(), 2, 16),
    "ghost batches with dropout": (Net(rate=0.5), 2, 2),  # chunks of 2, 2 and 1
    "no norm, dropout": (Net(normalised=False, rate=0.5), 1, 3),
    "no norm": (Net(normalised=False), "running", 10),
    "scan": (Lifted("scan"), "running", 4),
    "remat": (Lifted("remat"), "running", 4),
}


@pytest.mark.parametrize(("model", "bn", "chunk"), CASES.values(), ids=CASES)
def test_a_loop_over_the_examples(model, bn, chunk):
    variables, batch = initialised(model), images()
    found = per_example_gradients(model, variables, batch, bn=bn, chunk=chunk, keep=True)
    expected = loop(model, variables, batch, 0 if bn == "running" else bn, jax.random.key(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found.gradients,
        expected,
    )
    assert found.count == 10 // (1 if bn == "running" else bn) and found.normalised == (
        "norm" in variables["params"]
    )
    by_layer = layers_of(expected)
    assert {row.layer for row in found.layers} == set(by_layer)
    for row in found.layers:
        each = by_layer[row.layer]
        mean, variance = each.mean(0), each.var(0, ddof=1)
        assert row.parameters == each.shape[1]
        assert row.mean_norm == pytest.approx(np.linalg.norm(mean), rel=1e-4, abs=1e-6)
        assert row.example_norm == pytest.approx(np.linalg.norm(each, axis=1).mean(), rel=1e-4)
        assert row.variance == pytest.approx(variance.sum(), rel=1e-3)
        sizes = mean**2 + variance
        alive = (
            sizes > 1e-10 * sizes.max()
        )  # the convolution's bias, before batch norm, has a gradient of 0 and rounding
        if row.layer == "idle":
            assert math.isnan(row.gsnr) and row.example_norm == 0
        else:
            n = found.count
            ratio = (mean[alive] ** 2 / variance[alive]).mean() * (n - 3) / (n - 1) - 1 / n
            assert row.gsnr == pytest.approx(ratio, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("signal", [0.0, 1.0])
@pytest.mark.parametrize("count", [5, 20])
def test_noise_alone_has_no_signal(signal, count):
    """Gradients that are Gaussian numbers: signal^2 is the true ratio, whatever the number of examples."""

    class Weights(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", nn.initializers.zeros, (4000,))

    x = signal + jnp.asarray(
        np.random.default_rng(count).standard_normal((count, 4000), np.float32)
    )
    variables = {"params": {"w": jnp.zeros(4000)}}
    found = per_example_gradients(
        Weights(), variables, (x, jnp.zeros(count)), loss=lambda outputs, _: jnp.mean(outputs)
    )
    assert found.layers[0].gsnr == pytest.approx(signal**2, abs=0.1)


def test_order_is_the_forward_pass_and_gradients_are_kept_on_request_only():
    model, batch = Net(), images()
    found = per_example_gradients(model, initialised(model), batch)
    assert [row["layer"] for row in found.rows()] == ["second_by_name", "norm", "head", "idle"]
    assert found.gradients is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn": 0}, "bn is 0; allowed: 'running', or a number of examples"),
        ({"bn": True}, "bn is True; allowed: 'running'"),
        ({"bn": "batch"}, "bn is 'batch'; allowed: 'running'"),
        (
            {"bn": 3},
            "bn is 3; allowed: 'running', or a number of examples that divides the batch of 10",
        ),
        (
            {"bn": 10},
            "bn is 10; allowed: what leaves two gradients or more; the batch of 10 leaves 1",
        ),
        ({"chunk": 0}, "chunk is 0; allowed: a number of gradients"),
        ({"batch": (images(10)[0], images(8)[1])}, "batch has arrays of the shapes"),
        ({"batch": (jnp.zeros((4, 4, 4, 3)), jnp.zeros(4, jnp.int32))}, "Net cannot take a batch"),
        (
            {"loss": lambda outputs, batch: outputs[:, 0]},
            r"loss returned the shape \(1,\); allowed: a scalar",
        ),
        ({"variables": {}}, "'params' is missing"),
    ],
)
def test_what_has_no_gradients_of_examples(options, message):
    model = Net()
    given = {"variables": initialised(model), "batch": images()} | options
    with pytest.raises(InputError, match=message):
        per_example_gradients(model, given.pop("variables"), given.pop("batch"), **given)


# Noise scale --------------------------------------------------------------------------------------------------------------------

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
    """The gradient (d.x - e) x of an example has the mean d and, x being Gaussian, the covariance (|d|^2 + s^2) I + d d^T."""
    square = float(OFF @ OFF)
    trace = DIMENSIONS * (square + NOISE) + square
    variables, batches = regression(32, batches=400)
    found = noise_scale(Linear(), variables, batches, small=8, loss=half_square)
    estimates = np.array(found.estimates)
    error = estimates.std(0, ddof=1) / math.sqrt(len(estimates))
    assert np.all(np.abs(estimates.mean(0) - [square, trace]) < 4 * error)
    assert np.all(error < 0.05 * np.array([square, trace]))  # so that the line above could fail
    assert (
        found.scale == pytest.approx(trace / square, abs=4 * found.error)
        and found.error < 0.1 * found.scale
    )
    assert found.scale == found.rows()[-1]["scale"] and (found.small, found.big) == (8, 32)


def test_the_jackknife_is_the_spread_over_repetitions():
    variables, batches = regression(32, batches=1600)
    found = [
        noise_scale(Linear(), variables, batches[i : i + 80], small=8, loss=half_square)
        for i in range(0, 1600, 80)
    ]
    spread = np.std([each.scale for each in found], ddof=1)
    assert np.mean([each.error for each in found]) == pytest.approx(
        spread, rel=0.5
    )  # of 20 the spread is known to a sixth


def test_shares_of_one_example_give_the_trace_of_the_full_covariance():
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
    assert math.isnan(found.error)


@pytest.mark.parametrize(("bn", "ghost"), [("running", 0), (2, 2), (4, 4)])
def test_the_estimators_of_mccandlish_appendix_a1(bn, ghost):
    model, batches = Net(), [images(16, seed) for seed in range(2)]
    variables = initialised(model)
    expected = []
    for batch in batches:
        flat = np.concatenate(
            [*layers_of(loop(model, variables, batch, ghost, jax.random.key(0))).values()], axis=1
        )
        small = np.mean(
            np.sum(flat.reshape(4, -1, flat.shape[1]).mean(1) ** 2, axis=1)
        )  # four shares of 4 examples
        big = np.sum(flat.mean(0) ** 2)
        expected.append(((16 * big - 4 * small) / (16 - 4), (small - big) / (1 / 4 - 1 / 16)))
    found = noise_scale(model, variables, batches, small=4, bn=bn)
    np.testing.assert_allclose(found.estimates, expected, rtol=1e-3)
    g2, trace = np.mean(expected, axis=0)
    assert found.scale == pytest.approx(trace / g2, rel=1e-3) if g2 > 0 else math.isnan(found.scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small": 16}, "small is 16; allowed: below 16, and a divisor"),
        ({"small": 3}, "small is 3; allowed: below 16, and a divisor"),
        ({"small": 0}, "small is 0"),
        ({"batches": []}, "batches is 'empty'; allowed: one batch or more"),
        (
            {"batches": [images(16), images(8)]},
            "batches is 'of 16 and 8 examples'; allowed: batches of one size",
        ),
        ({"train": True}, "train is True; allowed: False where batch norm's statistics are frozen"),
        ({"bn": 3}, "bn is 3; allowed: 'running', or a number of examples that divides small=4"),
        ({"bn": "ghost"}, "bn is 'ghost'"),
    ],
)
def test_what_has_no_noise_scale(options, message):
    model = Net()
    given = {"batches": [images(16)], "small": 4} | options
    with pytest.raises(InputError, match=message):
        noise_scale(model, initialised(model), given.pop("batches"), **given)


def test_nothing_compiles_twice_and_the_figures_say_what_was_found():
    model = Net()
    variables, other = initialised(model, 0), initialised(model, 1)
    examples = per_example_gradients(model, variables, images())
    noise = noise_scale(model, variables, [images(16), images(16, 1)], small=4)
    before = _statistics._cache_size(), _square_norms._cache_size()
    per_example_gradients(model, other, images(seed=3))
    noise_scale(model, other, [images(16, 4)], small=4)
    assert (_statistics._cache_size(), _square_norms._cache_size()) == before
    ax = examples.plot()
    assert ax.get_title("left").startswith("10 gradients: ") and ax.get_yscale() == "log"
    assert examples.plot(ax) is ax
    ax = noise.plot()
    assert ax.get_title("left").startswith("Noise scale: ") and len(ax.lines[0].get_xdata()) == 2
