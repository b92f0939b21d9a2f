"""Linearised networks, their training, and kernel drift: closed forms and step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from deepjax.analysis.ntk.drift import kernel_drift
from deepjax.analysis.ntk.kernel import ntk
from deepjax.analysis.ntk.linearised import linearised, linearised_training
from tests.analysis.ntk.ntk_cases import Cnn, Linear, Mlp, Squared, Wide, gaussian, init, jacobian


@pytest.mark.parametrize("model", [Mlp(), Cnn(), Squared()], ids=lambda model: type(model).__name__)
def test_the_first_taylor_polynomial(model):
    x = gaussian((4, 3)) if isinstance(model, Mlp) else gaussian((4, 6, 6, 1))
    variables = init(model, x)
    flat, unravel = ravel_pytree(variables["params"])
    step = unravel(0.1 * jax.random.normal(jax.random.key(1), flat.shape))
    # The same network, with a forward mode.
    twin = Squared(own=False) if isinstance(model, Squared) else model

    def outputs(params):
        return twin.apply({**variables, "params": params}, x)

    value, change = jax.jvp(outputs, (variables["params"],), (step,))
    function = linearised(model, variables)
    moved = jax.tree.map(jnp.add, variables["params"], step)
    np.testing.assert_allclose(function(variables["params"], x), value, rtol=1e-5)
    np.testing.assert_allclose(function(moved, x), value + change, rtol=1e-4, atol=1e-5)
    assert not np.allclose(outputs(moved), value + change, rtol=1e-3)
    # The gradient with respect to the parameters is the same everywhere.
    slopes = jax.grad(lambda params: jnp.sum(function(params, x)))(moved)
    wanted = jax.grad(lambda params: jnp.sum(outputs(params)))(variables["params"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slopes, wanted
    )


def test_linearised_training_follows_the_kernels_eigenvectors():
    """f_t - y = (1 - rate K / examples)^t (f_0 - y) for half_mse (Lee et al. 2019, equation 9)."""
    x, y, steps, rate = gaussian((6, 3)), gaussian((6, 2), 1), 40, 0.3
    variables = init(Mlp(), x)
    run = linearised_training(Mlp(), variables, (x, y), steps=steps, learning_rate=rate)
    kernel = ntk(Mlp(), variables, x, output="full").flattened
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


def test_training_step_by_step():
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
    assert run.rms_change[-1] == pytest.approx(
        float(jnp.sqrt(jnp.mean((outputs - Mlp().apply(variables, x)) ** 2))), rel=1e-4
    )


def test_a_network_linear_in_its_parameters_is_its_own_linearisation_and_keeps_its_kernel():
    x, y = gaussian((6, 3)), gaussian((6, 1), 1)
    variables = init(Linear(), x)
    run = linearised_training(Linear(), variables, (x, y), steps=20, learning_rate=0.1)
    assert run.rmse.max() < 1e-5 < run.rms_change[-1]
    drift = kernel_drift(Linear(), variables, {"params": run.params}, x)
    assert drift.drift == pytest.approx(0, abs=1e-6)
    assert (drift.alignment, drift.growth) == pytest.approx((1, 1))


def test_drift_of_a_kernel_that_only_grows():
    """10 x the second layer's weights of `Wide` give 100 x the first layer's part of the kernel."""
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
