"""The wide networks are those of the theory, and its predictions are exact products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis import init_variables, shattering
from deepjax.study.results import StudyResults
from experiments.shattered_gradients import (
    CENTRED,
    PAPER,
    SHORT,
    STUDY,
    WITHOUT_MEAN,
    WideNet,
    exponent,
    independent_gates,
    rate,
)

X = jax.random.normal(jax.random.key(0), (4, 8))


def test_a_residual_block_adds_a_part_of_its_branch():
    outputs = [
        WideNet(1, residual=True, norm=False, beta=beta).init_with_output(jax.random.key(1), X)[0]
        for beta in (0.0, 1.0, 0.1)
    ]
    np.testing.assert_allclose(outputs[2], outputs[0] + 0.1 * (outputs[1] - outputs[0]), atol=1e-5)
    assert float(jnp.abs(outputs[1] - outputs[0]).max()) > 0.01


@pytest.mark.parametrize(("linear_blocks", "alike"), [(3, True), (2, False)])
def test_gradients_of_a_network_without_any_relu_are_equal(linear_blocks, alike):
    model = WideNet(3, linear_blocks=linear_blocks)
    found = shattering(model, init_variables(model, jax.random.key(1), X.shape), X)
    assert (abs(found.cosine - 1) < 1e-5) == alike


def test_the_scanned_blocks_are_those_of_a_loop():
    """Two blocks without norm, by hand."""
    model = WideNet(2, norm=False)
    variables = init_variables(model, jax.random.key(1), X.shape)
    params = variables["params"]
    x = X @ params["first"]["kernel"]
    for kernel in params["blocks"]["dense"]["kernel"]:
        x = jnp.maximum(x, 0) @ kernel
    np.testing.assert_allclose(model.apply(variables, X), x @ params["last"]["kernel"], rtol=1e-4)


def test_the_theory_is_the_product_over_blocks():
    """Balduzzi et al. 2017: a power of -1/2 in the limit; -0.45 at the measured depths."""
    assert independent_gates(1) == pytest.approx(1.5 / 2)
    assert independent_gates(2) == pytest.approx(1.5 / 2 * 1.25 / 1.5)
    assert exponent(PAPER) == pytest.approx(-0.45, abs=0.005)
    far = [np.log(independent_gates(4000, g) / independent_gates(2000, g)) / np.log(2) for g in
           (1.0, WITHOUT_MEAN)]  # fmt: skip
    assert far == pytest.approx([-0.5, -0.5 / WITHOUT_MEAN], abs=1e-3)


def test_a_branch_adds_less_variance_once_its_mean_is_subtracted():
    """The variance of sqrt(2) relu(x) of a standard normal, by numerical integration."""
    x = np.linspace(-12, 12, 200_001)
    weights = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    branch = np.sqrt(2) * np.maximum(x, 0)
    mean = weights @ branch
    assert weights @ (branch - mean) ** 2 == pytest.approx(WITHOUT_MEAN, abs=1e-6)
    assert exponent(CENTRED) == pytest.approx(-0.62, abs=0.005)


@pytest.mark.parametrize(("base", "expected"), [(1 / 2, 1.0), (3 / 4, 0.415), (1.0, 0.0)])
def test_the_rate_is_one_for_the_law_itself(base, expected):
    seeds = [{"plain, batch norm": {str(depth): base**depth for depth in SHORT}}] * 2
    results = StudyResults(STUDY.presets["small"], (0, 1), {}, seeds)
    found = rate("plain, batch norm", 1 / 2).sample(results)
    assert found.by_seed == pytest.approx([expected] * 2, abs=1e-3)
