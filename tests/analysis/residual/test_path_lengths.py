"""Path lengths: against all 2^n paths, products of weights, and a binomial in closed form."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import EVAL, TRAIN
from deepjax.analysis.network.module import cross_entropy
from deepjax.analysis.residual.paths import path_gradient, path_lengths
from deepjax.errors import InputError
from tests.analysis.counting import CountCalls
from tests.analysis.residual.residual_networks import (
    CLASSES,
    WIDTH,
    Add,
    Net,
    batch_of,
    initialised,
    rewired,
)


def every_path(names):
    return [
        chosen for size in range(len(names) + 1) for chosen in itertools.combinations(names, size)
    ]


CASES = {
    "linear": (Net(linear=True), EVAL),
    "relu": (Net(), EVAL),
    "batch statistics": (Net(), TRAIN),
    "remat": (Net(how="remat"), TRAIN),
}


@pytest.mark.parametrize(("model", "mode"), CASES.values(), ids=CASES)
def test_the_paths_add_up_to_the_gradient(model, mode):
    variables, (x, labels) = initialised(model), batch_of()
    whole = jax.jit(jax.grad(lambda x: entropy_of(model, variables, x, labels, mode.train)))(x)
    paths = every_path([f"block{i}/sum" for i in range(4)])
    gradients = [
        np.asarray(path_gradient(model, variables, (x, labels), path, mode=mode)[0], np.float64)
        for path in paths
    ]
    assert len(paths) == 16
    np.testing.assert_allclose(sum(gradients), whole, rtol=1e-4, atol=1e-6)

    # No length has more than 6 paths over 4 sums, so every path is used.
    found = path_lengths(model, variables, (x, labels), samples=6, mode=mode)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(whole), rel=1e-5)
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients])
    sizes = np.array([len(path) for path in paths])
    for row in found.lengths:
        assert (row.paths, row.sampled, row.standard_error) == (
            math.comb(4, row.length),
            math.comb(4, row.length),
            0,
        )
        assert row.norm == pytest.approx(norms[sizes == row.length].mean(), rel=1e-4)
        assert row.fraction == pytest.approx(
            norms[sizes == row.length].sum() / norms.sum(), rel=1e-4
        )
    assert found.mean_length == pytest.approx((sizes * norms).sum() / norms.sum(), rel=1e-4)


def entropy_of(model, variables, x, labels, train):
    outputs = model.apply(variables, x, train=train, mutable=["batch_stats"])[0]
    return -jnp.mean(
        jnp.sum(jax.nn.log_softmax(outputs) * jax.nn.one_hot(labels, CLASSES), axis=-1)
    )


def test_a_path_of_a_linear_network_is_a_product_of_its_weights():
    model, (x, labels) = Net(depth=3, linear=True), batch_of()
    variables = initialised(model)
    weights = [np.asarray(variables["params"][f"block{i}"]["dense"]["kernel"]) for i in range(3)]
    logits = np.asarray(model.apply(variables, x))
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = (
        (odds - np.eye(CLASSES)[labels])
        / len(x)
        @ np.asarray(variables["params"]["head"]["kernel"]).T
    )
    (found,) = path_gradient(model, variables, (x, labels), ["block0/sum", "block2/sum"])
    np.testing.assert_allclose(found, expected @ weights[2].T @ weights[0].T, rtol=1e-4, atol=1e-7)


def orthogonal(model, variables, scale):
    """Every branch rotates and scales its input: k branches carry scale^k of the gradient."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0]
    return rewired(
        variables,
        [f"block{i}/dense" for i in range(model.depth)],
        jnp.asarray(scale * turn, jnp.float32),
    )


@pytest.mark.parametrize(("depth", "scale"), [(6, 0.5), (9, 2.0), (24, 0.0625)])
def test_equal_branches_spread_it_as_a_binomial(depth, scale):
    """N over k times scale^k; the longest path carries 2^-96, whose square underflows float32."""
    model = Net(depth=depth, linear=True)
    found = path_lengths(
        model, orthogonal(model, initialised(model), scale), batch_of(), samples=2, chunk=16
    )
    p = scale / (1 + scale)
    expected = np.array(
        [math.comb(depth, k) * p**k * (1 - p) ** (depth - k) for k in range(depth + 1)]
    )
    np.testing.assert_allclose([row.fraction for row in found.lengths], expected, rtol=1e-3)
    assert found.mean_length == pytest.approx(depth * p, rel=1e-3)
    low, high = found.interval
    assert expected[: low + 1].sum() >= 0.025 > expected[:low].sum()
    assert expected[: high + 1].sum() >= 0.975 > expected[:high].sum()
    assert found.fraction_of_paths == pytest.approx(
        sum(math.comb(depth, k) for k in range(low, high + 1)) / 2**depth
    )
    assert [row.sampled for row in found.lengths] == [1] + [2] * (depth - 1) + [1]


def test_samples_are_within_their_error():
    model = Net(depth=8)
    variables, batch = initialised(model), batch_of()
    exact, sampled = (
        path_lengths(model, variables, batch, samples=samples, chunk=32) for samples in (70, 24)
    )
    assert (
        all(row.standard_error == 0 for row in exact.lengths)
        and sampled.lengths[4].standard_error > 0
    )
    for all_of_them, some in zip(exact.lengths, sampled.lengths, strict=True):
        assert some.norm == pytest.approx(
            all_of_them.norm, abs=4 * some.standard_error + 1e-5 * some.norm
        )
    assert sampled.mean_length == pytest.approx(exact.mean_length, rel=0.1)


def no_gradient(outputs, batch):
    return jnp.zeros((), jnp.float32)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Net(residual=False), {}, "Net has no residual sums"),
        (Net(how="scan"), {}, "blocks/sum runs several times inside nn.scan"),
        (Net(), {"samples": 0}, "samples is 0; allowed: 1 or more"),
        (Net(), {"chunk": 0}, "chunk is 0"),
        (Net(), {"loss": no_gradient}, "no path carries any gradient to the inputs"),
        (
            Net(linear=True),
            {"batch": (jnp.full((8, WIDTH), jnp.inf), batch_of()[1])},
            "paths of 0 branches carry a gradient that is not finite",
        ),
    ],
)
def test_bad_arguments_of_path_lengths(model, options, message):
    given = {"batch": batch_of()} | options
    with pytest.raises(InputError, match=message):
        path_lengths(model, initialised(model), given.pop("batch"), **given)


def test_inputs_without_gradient_and_unknown_sums():
    class Words(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Embed(5, WIDTH)(x)
            return nn.Dense(CLASSES)(Add(name="sum")(x, nn.Dense(WIDTH)(x)))

    words = jnp.arange(4)
    with pytest.raises(
        InputError,
        match="batch is 'inputs of int32'; allowed: inputs of floats, which have",
    ):
        path_lengths(Words(), Words().init(jax.random.key(0), words), (words, words % CLASSES))
    with pytest.raises(InputError, match="layer 'block1/su' is unknown; did you mean 'block1/sum'"):
        path_gradient(Net(), initialised(Net()), batch_of(), ["block1/su"])


def test_nothing_compiles_twice_and_progress_is_reported():
    model, loss, reports = Net(), CountCalls(cross_entropy), []
    path_lengths(model, initialised(model), batch_of(), loss=loss, samples=6)
    traces = loss.calls
    path_lengths(
        model,
        initialised(model, 1),
        batch_of(seed=1),
        loss=loss,
        samples=2,
        progress=lambda *done: reports.append(done),
    )
    assert reports == [(8, 9), (9, 9)]  # the full gradient, and 1 + 2 + 2 + 2 + 1 paths
    assert loss.calls == traces


def test_the_figure_shows_the_finding():
    model = Net()
    found = path_lengths(model, initialised(model), batch_of())
    ax, (low, high) = found.plot(), found.interval
    assert ax.get_title("left") == (
        f"95 % of the gradient takes {low} to {high} of 4 branches, "
        f"{found.mean_length:.1f} on average\n8 examples, running statistics"
    )
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.array([1, 4, 6, 4, 1]) / 16)
    assert found.rows()[1]["paths"] == 4
