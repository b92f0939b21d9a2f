"""Kernels against closed forms, whole Jacobians and the limit of infinite width; training against the kernel's eigenvectors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from deepjax.analysis.ntk.kernel import _contract, _jacobian, kernel_drift, ntk
from deepjax.analysis.ntk.linearised import (
    _descend,
    _linear,
    half_mse,
    linearised,
    linearised_training,
)
from deepjax.errors import InputError


class Linear(nn.Module):
    outputs: int = 1

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(x)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(jnp.tanh(nn.Dense(8, name="first")(x)))


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(2, name="head")(x.mean((1, 2)))


@jax.custom_vjp
def square(x):
    """Its derivative is given, so that JAX has no forward mode for it."""
    return x * x


square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))


class Squared(nn.Module):
    own: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2)(x.reshape(len(x), -1))
        return square(x) if self.own else x * x


class Two(nn.Module):
    """Takes two inputs, and returns no single array."""

    pair: bool

    @nn.compact
    def __call__(self, x, y):
        x, y = nn.Dense(1, name="x")(x), nn.Dense(1, name="y")(y)
        return (x, y) if self.pair else x + y


class Wide(nn.Module):
    """Two layers as in Jacot et al. 2018: f = sqrt(2 / width) a . relu(W x / sqrt(inputs)), all weights from N(0, 1)."""

    width: int

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal(1.0)
        first = self.param("first", normal, (x.shape[-1], self.width))
        second = self.param("second", normal, (self.width, 1))
        return math.sqrt(2 / self.width) * nn.relu(x @ first / math.sqrt(x.shape[-1])) @ second


def gaussian(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def init(model, x, seed=0):
    """With running statistics that are not the batch's."""
    variables = jax.jit(model.init)(jax.random.key(seed), x)
    return {
        **variables,
        **jax.tree.map(
            lambda leaf: leaf + 0.3, {key: variables[key] for key in variables if key != "params"}
        ),
    }


def jacobian(model, variables, x):
    """(examples, outputs, parameters), at once and without the instrument."""
    flat, unravel = ravel_pytree(variables["params"])
    return np.asarray(
        jax.jit(jax.jacrev(lambda flat: model.apply({**variables, "params": unravel(flat)}, x)))(
            flat
        ),
        float,
    )


# The kernel ---------------------------------------------------------------------------------------------------------------------


def test_the_kernel_of_a_linear_network():
    """Gradients are x by the weights and 1 by the bias: K = x . x' + 1 for each output, and 0 between two."""
    x, y = gaussian((5, 3)), gaussian((4, 3), 1)
    exact = np.asarray(x @ y.T, float) + 1
    one, three = Linear(), Linear(3)
    np.testing.assert_allclose(ntk(one, init(one, x), x, y).matrix, exact, rtol=1e-5)
    full = ntk(three, init(three, x), x, y, output="full")
    np.testing.assert_allclose(full.matrix, exact[:, :, None, None] * np.eye(3), rtol=1e-5)
    np.testing.assert_allclose(full.square, np.kron(exact, np.eye(3)), rtol=1e-5)
    np.testing.assert_allclose(
        ntk(three, init(three, x), x, y, output="trace").matrix, 3 * exact, rtol=1e-5
    )
    assert (
        full.outputs == 3
        and full.parameters == 12
        and full.rows()[5]["kernel"] == pytest.approx(exact[1, 1], rel=1e-5)
    )


@pytest.mark.parametrize("chunk", [2, 16])
@pytest.mark.parametrize("other", [False, True])
def test_the_kernel_of_a_network_with_batch_norm_is_that_of_the_whole_jacobian(other, chunk):
    x, y = gaussian((5, 6, 6, 1)), gaussian((3, 6, 6, 1), 1)
    variables = init(Cnn(), x)
    left = jacobian(Cnn(), variables, x)
    full = np.einsum("iap,jbp->ijab", left, jacobian(Cnn(), variables, y) if other else left)
    trace = np.trace(full, axis1=2, axis2=3)
    for output, wanted in (("full", full), ("trace", trace), ("mean", trace / 2)):
        found = ntk(Cnn(), variables, x, y if other else None, output=output, chunk=chunk)
        np.testing.assert_allclose(found.matrix, wanted, rtol=1e-4, atol=1e-5)
        assert found.symmetric == (not other) and found.parameters == left.shape[-1]


@pytest.mark.parametrize("output", ["mean", "full"])
def test_a_kernel_is_symmetric_with_eigenvalues_of_at_least_zero(output):
    x = gaussian((7, 3))
    found = ntk(Mlp(), init(Mlp(), x), x, output=output, chunk=3)
    np.testing.assert_allclose(found.square, found.square.T, rtol=1e-5)
    values = np.sort(np.linalg.eigvalsh(found.square))[::-1]
    np.testing.assert_allclose(found.eigenvalues, values)
    assert (values > -found.rounding).all() and found.condition == pytest.approx(
        values[0] / values[-1]
    )
    assert [row["eigenvalue"] for row in found.rows()] == found.eigenvalues.tolist()
    assert sum(row["share"] for row in found.rows()) == pytest.approx(1)


def test_fewer_parameters_than_examples_leave_a_singular_kernel():
    x = gaussian((6, 2))
    found = ntk(Linear(), init(Linear(), x), x)
    assert (
        found.condition == math.inf and (found.eigenvalues > found.rounding).sum() == 3
    )  # two weights and a bias
    assert "singular" in found.plot().get_title("left")


def test_networks_of_two_inputs():
    x, y = gaussian((4, 3)), gaussian((4, 2), 1)
    variables = Two(False).init(jax.random.key(0), x, y)
    np.testing.assert_allclose(
        ntk(Two(False), variables, (x, y)).matrix,
        np.asarray(x @ x.T + y @ y.T, float) + 2,
        rtol=1e-5,
    )


# Width --------------------------------------------------------------------------------------------------------------------------

WIDTHS, SEEDS, EXAMPLES = (64, 256, 1024, 4096), 6, 8


def arc_cosine(x):
    """The limit of `Wide`: kernels of degree 1 and 0 of Cho and Saul 2009, and Jacot et al. 2018's recursion."""
    x = np.asarray(x, float)
    lengths, size = np.linalg.norm(x, axis=1), x.shape[1]
    products = x @ x.T
    angles = np.arccos(np.clip(products / np.outer(lengths, lengths), -1, 1))
    second = (
        np.outer(lengths, lengths)
        / size
        * (np.sin(angles) + (np.pi - angles) * np.cos(angles))
        / np.pi
    )
    return second + products / size * (np.pi - angles) / np.pi


@pytest.fixture(scope="module")
def wide_runs():
    """By width: mean over seeds of the kernel's distance from its limit, its drift in training, and the linearisation's error."""
    x, y = gaussian((EXAMPLES, 6)), gaussian((EXAMPLES, 1), 1)
    limit, found = arc_cosine(x), []
    for width in WIDTHS:
        numbers = []
        for seed in range(SEEDS):
            variables = init(Wide(width), x, seed)
            run = linearised_training(Wide(width), variables, (x, y), steps=60, learning_rate=0.5)
            drift = kernel_drift(Wide(width), variables, {"params": run.params}, x)
            away = np.linalg.norm(drift.kernel_0.matrix - limit) / np.linalg.norm(limit)
            numbers.append((away, drift.drift, run.rmse[-1], 1 - drift.alignment))
        found.append(np.mean(numbers, 0))
    return np.array(found)


def slope(values):
    return np.polyfit(np.log(WIDTHS), np.log(values), 1)[0]


def test_the_kernel_approaches_that_of_infinite_width_as_one_over_the_root(wide_runs):
    """Novak et al. 2019 (arXiv:1912.02803): a Monte Carlo estimate with as many samples as there are units."""
    assert -0.65 < slope(wide_runs[:, 0]) < -0.35
    assert wide_runs[-1, 0] < 0.05


def test_drift_falls_with_width(wide_runs):
    """Lee et al. 2019: at most 1 / sqrt(width) by theory, about 1 / width in experiments (their Figure 1)."""
    assert -1.3 < slope(wide_runs[:, 1]) < -0.4
    assert (wide_runs[:, 3] >= 0).all() and wide_runs[-1, 3] < 1e-3


def test_the_linearisation_becomes_exact_with_width(wide_runs):
    """Lee et al. 2019, theorem 2.1: the distance is at most of the order 1 / sqrt(width)."""
    assert -1.3 < slope(wide_runs[:, 2]) < -0.4


# Linearised ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Mlp(), Cnn(), Squared()], ids=lambda model: type(model).__name__)
def test_the_first_taylor_polynomial(model):
    x = gaussian((4, 3)) if isinstance(model, Mlp) else gaussian((4, 6, 6, 1))
    variables = init(model, x)
    flat, unravel = ravel_pytree(variables["params"])
    step = unravel(0.1 * jax.random.normal(jax.random.key(1), flat.shape))
    twin = (
        Squared(own=False) if isinstance(model, Squared) else model
    )  # the same, with a forward mode

    def outputs(params):
        return twin.apply({**variables, "params": params}, x)

    value, change = jax.jvp(outputs, (variables["params"],), (step,))
    function = linearised(model, variables)
    moved = jax.tree.map(jnp.add, variables["params"], step)
    np.testing.assert_allclose(function(variables["params"], x), value, rtol=1e-5)
    np.testing.assert_allclose(function(moved, x), value + change, rtol=1e-4, atol=1e-5)
    assert not np.allclose(outputs(moved), value + change, rtol=1e-3)
    slopes = jax.grad(lambda params: jnp.sum(function(params, x)))(
        moved
    )  # by the parameters the same everywhere
    wanted = jax.grad(lambda params: jnp.sum(outputs(params)))(variables["params"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slopes, wanted
    )


def test_linearised_training_follows_the_kernels_eigenvectors():
    """Under half the mean squared distance f_t - y = (1 - rate K / examples)^t (f_0 - y) (Lee et al. 2019, equation 9)."""
    x, y, steps, rate = gaussian((6, 3)), gaussian((6, 2), 1), 40, 0.3
    variables = init(Mlp(), x)
    run = linearised_training(Mlp(), variables, (x, y), steps=steps, learning_rate=rate)
    kernel = ntk(Mlp(), variables, x, output="full").square
    values, vectors = np.linalg.eigh(kernel)
    rest = np.asarray(Mlp().apply(variables, x) - y, float).ravel()

    def distance(step):
        return vectors @ ((1 - rate * values / len(x)) ** step * (vectors.T @ rest))

    exact = [np.sum(distance(step) ** 2) / (2 * len(x)) for step in range(steps + 1)]
    np.testing.assert_allclose(run.loss_linear, exact, rtol=1e-4)
    last = np.asarray(linearised(Mlp(), variables)(run.params_linear, x) - y).ravel()
    np.testing.assert_allclose(last, distance(steps), atol=1e-5)
    assert (
        run.examples == 6
        and len(run.rows()) == steps + 1
        and run.rows()[-1]["rmse"] == run.rmse[-1]
    )


def test_training_written_out_by_hand():
    x, labels = gaussian((6, 3)), jnp.array([0, 1, 1, 0, 1, 0])
    variables, targets = init(Mlp(), x), jax.nn.one_hot(labels, 2)

    def loss(params):
        return jnp.sum((Mlp().apply({"params": params}, x) - targets) ** 2) / 12

    params, losses = variables["params"], []
    for _ in range(3):
        losses.append(float(loss(params)))
        params = jax.tree.map(
            lambda leaf, slope: leaf - 0.2 * slope, params, jax.grad(loss)(params)
        )
    run = linearised_training(Mlp(), variables, (x, labels), steps=3, learning_rate=0.2)
    np.testing.assert_allclose(run.loss, [*losses, float(loss(params))], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), run.params, params
    )
    outputs = Mlp().apply({"params": params}, x)
    linear = linearised(Mlp(), variables)(run.params_linear, x)
    assert run.rmse[-1] == pytest.approx(
        float(jnp.sqrt(jnp.mean((outputs - linear) ** 2))), rel=1e-3
    )
    assert run.moved[-1] == pytest.approx(
        float(jnp.sqrt(jnp.mean((outputs - Mlp().apply(variables, x)) ** 2))), rel=1e-4
    )


def test_a_network_linear_in_its_parameters_is_its_own_linearisation_and_keeps_its_kernel():
    x, y = gaussian((6, 3)), gaussian((6, 1), 1)
    variables = init(Linear(), x)
    run = linearised_training(Linear(), variables, (x, y), steps=20, learning_rate=0.1)
    assert run.rmse.max() < 1e-5 < run.moved[-1]
    drift = kernel_drift(Linear(), variables, {"params": run.params}, x)
    assert drift.drift == pytest.approx(
        0, abs=1e-6
    ) and drift.alignment == drift.growth == pytest.approx(1)


def test_drift_of_a_kernel_that_only_grows():
    """Ten times the second layer's weights of `Wide` raise the first layer's part of the kernel to 100 times."""
    x = gaussian((5, 3))
    variables = init(Linear(), x)
    drift = kernel_drift(Linear(), variables, variables, x)
    assert (drift.drift, drift.growth) == (0, 1)
    first = ntk(Wide(16), init(Wide(16), x), x)
    params = init(Wide(16), x)["params"]
    drift = kernel_drift(
        Wide(16), {"params": params}, {"params": {**params, "second": 10 * params["second"]}}, x
    )
    parts = jacobian(Wide(16), {"params": params}, x)[:, 0, : params["first"].size]
    change = 99 * parts @ parts.T
    assert drift.drift == pytest.approx(
        np.linalg.norm(change) / np.linalg.norm(first.matrix), rel=1e-4
    )
    moved = first.matrix + change
    assert drift.growth == pytest.approx(
        np.linalg.norm(moved) / np.linalg.norm(first.matrix), rel=1e-4
    )
    cosine = np.vdot(moved, first.matrix) / np.linalg.norm(moved) / np.linalg.norm(first.matrix)
    assert drift.alignment == pytest.approx(cosine, rel=1e-4)


# What is shared -----------------------------------------------------------------------------------------------------------------


def test_nothing_compiles_twice_and_progress_is_shown():
    def everything(seed, size, steps, progress=None):
        x, y = gaussian((size, 3), seed), gaussian((4, 2), seed)
        variables = init(Mlp(), x, seed)
        ntk(Mlp(), variables, x, chunk=2, progress=progress)
        run = linearised_training(
            Mlp(), variables, (x[:4], y), steps=steps, learning_rate=0.1, progress=progress
        )
        kernel_drift(Mlp(), variables, {"params": run.params}, x, chunk=2, progress=progress)
        linearised(Mlp(), variables)(run.params, x[:4])
        return [function._cache_size() for function in (_jacobian, _contract, _descend, _linear)]

    before, seen = everything(0, 4, 2), []
    assert (
        everything(1, 5, 3, lambda *done: seen.append(done)) == before
    )  # the last part of 5 is filled up to 2
    assert seen == [
        *((done, 6) for done in range(1, 7)),
        *((done, 3) for done in range(1, 4)),
        *((done, 12) for done in range(1, 13)),
    ]


def test_figures_say_what_was_found():
    x, y = gaussian((6, 3)), gaussian((6, 2), 1)
    variables = init(Mlp(), x)
    kernel = ntk(Mlp(), variables, x)
    ax = kernel.plot()
    assert (
        f"condition {kernel.condition:.3g}" in ax.get_title("left")
        and ax.get_yscale() == "log"
        and kernel.plot(ax) is ax
    )
    assert "between two sets" in ntk(Mlp(), variables, x, x[:2], output="full").plot().get_title(
        "left"
    )
    run = linearised_training(Mlp(), variables, (x, y), steps=5, learning_rate=0.3)
    assert run.plot().get_title("left").startswith("After 5 steps linearised by")
    drift = kernel_drift(Mlp(), variables, {"params": run.params}, x)
    assert f"moved by {100 * drift.drift:.3g} %" in drift.plot().get_title("left")
    assert drift.rows() == [
        {"drift": drift.drift, "alignment": drift.alignment, "growth": drift.growth, "examples": 6}
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda v, x: ntk(Mlp(), v, x, output="sum"),
            "output is 'sum'; allowed: 'mean', 'trace', 'full'",
        ),
        (lambda v, x: ntk(Mlp(), v, x, chunk=0), "chunk is 0; allowed: a number of examples"),
        (lambda v, x: ntk(Mlp(), v, x[:, :2]), "Mlp cannot take a batch with inputs of shape"),
        (lambda v, x: ntk(Mlp(), v, x, x[:, :2]), "Mlp cannot take a batch with inputs of shape"),
        (lambda v, x: ntk(Mlp(), {}, x), "'params' is missing"),
        (lambda v, x: ntk(Mlp(), v, x, x).eigenvalues, "kernel is 'between two sets of inputs"),
        (
            lambda v, x: kernel_drift(Mlp(), v, {"params": {}}, x),
            "variables_t is a tree without 'first/bias'",
        ),
        (
            lambda v, x: kernel_drift(Mlp(), v["params"], v, x),
            r"variables have the collections \['first', 'head'\]; 'params' is missing",
        ),
        (lambda v, x: linearised(Mlp(), v)({"first": 0}, x), "params is a tree with 'first'"),
        (lambda v, x: linearised(Mlp(), v)(v["params"], x[:, :2]), "Mlp cannot take a batch"),
        (
            lambda v, x: linearised_training(Mlp(), v, (x, x), steps=1, learning_rate=0.1),
            r"labels is 'of shape \(4, 3\)'",
        ),
        (
            lambda v, x: linearised_training(Mlp(), v, (x, x[:, :2]), steps=0, learning_rate=0.1),
            "steps is 0; allowed: 1 or more",
        ),
        (
            lambda v, x: linearised_training(Mlp(), v, (x, x[:, :2]), steps=1, learning_rate=0),
            "learning_rate is 0; allowed: above 0",
        ),
        (
            lambda v, x: linearised_training(Mlp(), v, (x, x[:, :2]), steps=90, learning_rate=1e3),
            "at step .* a loss is not finite",
        ),
    ],
)
def test_what_is_refused(call, message):
    x = gaussian((4, 3))
    with pytest.raises(InputError, match=message):
        call(init(Mlp(), x), x)


def test_networks_that_return_no_single_array():
    x = gaussian((4, 3))
    variables = Two(True).init(jax.random.key(0), x, x)
    with pytest.raises(InputError, match="the network's output is"):
        ntk(Two(True), variables, (x, x))
    assert float(half_mse(x, (x, x))) == 0
