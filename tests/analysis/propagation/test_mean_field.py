"""Mean field theory against closed forms, dense integration and wide random networks."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis.propagation.mean_field import critical_sigma_w, mean_field
from deepjax.errors import InputError
from tests.analysis.counting import CountCalls


def relu(x):
    return jnp.maximum(x, 0)


GRID = np.linspace(-10, 10, 4001)
DENSITY = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


def dense_chi(sigma_w, q):
    return sigma_w**2 * float(DENSITY @ (1 - np.tanh(math.sqrt(q) * GRID) ** 2) ** 2)


def dense_covariance(q, c):
    grid, density = GRID[::20], DENSITY[::20] / DENSITY[::20].sum()
    second = c * grid[:, None] + math.sqrt(1 - c * c) * grid[None]
    return float(
        (density * np.tanh(math.sqrt(q) * grid)) @ np.tanh(math.sqrt(q) * second) @ density
    )


def test_relu_is_critical_at_variance_two():
    found = mean_field(relu, math.sqrt(2), 0.0)
    assert found.chi_1 == pytest.approx(1, abs=1e-12)
    assert found.q_star == 1 and found.c_star == 1 and found.xi_c == found.xi_q == math.inf
    assert critical_sigma_w(relu, 0.0) == pytest.approx(math.sqrt(2), abs=1e-12)
    below, above = mean_field(relu, 1.0, 0.5), mean_field(relu, 2.0, 0.0)
    assert below.q_star == pytest.approx(0.5, abs=1e-12)  # sigma_b^2 / (1 - sigma_w^2 / 2)
    assert (below.xi_q, below.xi_c) == pytest.approx((1 / math.log(2),) * 2, rel=1e-9)
    assert above.q_star == math.inf and above.chi_1 == pytest.approx(2) and math.isnan(above.xi_q)
    # The arc-cosine kernel of Cho and Saul 2009.
    kernel = [
        (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi
        for c, _ in found.correlations
    ]
    np.testing.assert_allclose([after for _, after in found.correlations], kernel, atol=1e-3)


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(1.5, 0.3), (2.5, 0.1), (0.9, 0.2)])
def test_tanh_against_a_dense_integral(sigma_w, sigma_b):
    found = mean_field(jnp.tanh, sigma_w, sigma_b)
    q = 1.0
    for _ in range(400):
        q = sigma_w**2 * float(DENSITY @ np.tanh(math.sqrt(q) * GRID) ** 2) + sigma_b**2
    assert found.q_star == pytest.approx(q, rel=1e-7)
    assert found.chi_1 == pytest.approx(dense_chi(sigma_w, q), rel=1e-6)
    step = 1e-4 * q
    slope = (mapped(sigma_w, sigma_b, q + step) - mapped(sigma_w, sigma_b, q - step)) / (2 * step)
    assert found.xi_q == pytest.approx(-1 / math.log(slope), rel=1e-5)
    assert (found.c_star == 1) == (found.chi_1 <= 1)
    after = (sigma_w**2 * dense_covariance(q, found.c_star) + sigma_b**2) / q
    assert after == pytest.approx(found.c_star, abs=1e-6)


def mapped(sigma_w, sigma_b, q):
    return sigma_w**2 * float(DENSITY @ np.tanh(math.sqrt(q) * GRID) ** 2) + sigma_b**2


def test_tanh_dies_out_or_is_odd_without_bias():
    dead = mean_field(jnp.tanh, 0.8, 0.0)
    assert dead.q_star == 0 and dead.chi_1 == pytest.approx(0.64, rel=1e-9)
    assert mean_field(jnp.tanh, 2.0, 0.0).c_star == 0
    assert critical_sigma_w(jnp.tanh, 0.0) == pytest.approx(1, abs=1e-6)
    edge = critical_sigma_w(jnp.tanh, 0.3)
    assert edge > 1 and mean_field(jnp.tanh, edge, 0.3).chi_1 == pytest.approx(1, abs=1e-9)


def travel(found, start, width=1000, pairs=48, layers=9):
    """Correlations of input pairs after each layer of a random network, and the last variance."""
    rng = np.random.default_rng(0)
    shared, own = (rng.standard_normal((pairs, width), np.float32) for _ in range(2))
    root = np.float32(math.sqrt(found.q_star))
    first, second = (
        root * shared,
        root * (np.float32(start) * shared + np.float32(math.sqrt(1 - start**2)) * own),
    )
    correlations = []
    for _ in range(layers):
        weights = rng.standard_normal((width, width), np.float32) * np.float32(
            found.sigma_w / math.sqrt(width)
        )
        bias = np.float32(found.sigma_b) * rng.standard_normal(width, np.float32)
        first, second = np.tanh(first) @ weights + bias, np.tanh(second) @ weights + bias
        correlations.append(
            np.mean((first * second).mean(1) / np.sqrt((first**2).mean(1) * (second**2).mean(1)))
        )
    return np.array(correlations), (first**2).mean()


@pytest.mark.parametrize(
    ("sigma_w", "sigma_b", "start"), [(1.2, 0.5, 0.0), (1.8, 0.4, 0.0), (2.5, 0.3, 0.9)]
)
def test_a_wide_random_network_does_what_the_theory_says(sigma_w, sigma_b, start):
    found = mean_field(jnp.tanh, sigma_w, sigma_b)
    correlations, variance = travel(found, start)
    assert variance == pytest.approx(found.q_star, rel=0.06)
    expected = [start]
    for _ in correlations:
        expected.append(np.interp(expected[-1], *np.array(found.correlations).T))
    np.testing.assert_allclose(correlations, expected[1:], atol=0.05)


def test_distances_decay_over_the_depth_scale():
    found = mean_field(jnp.tanh, 1.2, 0.5)
    distances = found.c_star - travel(found, 0.0)[0]
    assert -1 / np.polyfit(np.arange(5), np.log(distances[4:]), 1)[0] == pytest.approx(
        found.xi_c, rel=0.1
    )


def test_mean_field_compiles_once():
    activation = CountCalls(jnp.tanh)
    mean_field(activation, 1.5, 0.3)
    traces = activation.calls
    mean_field(activation, 1.3, 0.2)
    assert activation.calls == traces


def test_the_figure_shows_the_finding():
    found = mean_field(jnp.tanh, 1.5, 0.3)
    assert "chaotic" in found.plot().get_title("left") and "correlations" not in found.rows()[0]
    assert found.plot(title="Mine").get_title("left") == "Mine"
    assert repr(found).startswith("MeanField: q_star ") and "array" not in repr(found)


@pytest.mark.parametrize(
    ("sigma_w", "sigma_b", "name"),
    [(0.0, 0.1, "sigma_w"), (1.0, -0.1, "sigma_b"), (math.nan, 0.1, "sigma_w")],
)
def test_a_standard_deviation_must_be_finite_and_positive(sigma_w, sigma_b, name):
    with pytest.raises(InputError, match=f"{name} is"):
        mean_field(jnp.tanh, sigma_w, sigma_b)
