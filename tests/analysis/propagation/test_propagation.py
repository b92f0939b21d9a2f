"""Signal propagation against closed forms; mean field theory against dense integration and wide random networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis.propagation.signal import (
    _signals,
    _value_and_slope,
    critical_sigma_w,
    mean_field,
    signal_propagation,
)
from deepjax.errors import InputError
from deepjax.models import create_model

WIDTH = 128


def quarter_turns(key, shape, dtype=jnp.float32):
    return jnp.kron(jnp.eye(shape[0] // 2, dtype=dtype), jnp.array([[0, 1], [-1, 0]], dtype))


class Add(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class ResidualBlock(nn.Module):
    """x + alpha F(x / beta), with F the quarter turn of each pair of channels: in sum over channels uncorrelated with x."""

    normalised: bool
    alpha: float = 1.0
    beta: float = 1.0

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.BatchNorm(use_running_average=not train)(x) if self.normalised else x / self.beta
        y = self.alpha * nn.Dense(
            x.shape[-1], use_bias=False, kernel_init=quarter_turns, name="turn"
        )(y)
        return Add(name="sum")(x, y)


class Stack(nn.Module):
    depth: int
    normalised: bool = False
    alpha: float = 1.0
    norm_free: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        variance = 1.0
        for i in range(self.depth):
            beta = math.sqrt(variance) if self.norm_free else 1.0
            x = ResidualBlock(self.normalised, self.alpha, beta, name=f"block{i}")(x, train=train)
            variance += self.alpha**2
        return nn.Dense(4, name="head")(x)


class ReluBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1], use_bias=False, kernel_init=nn.initializers.he_normal())(
            nn.relu(x)
        )


class ReluStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(6):
            x = ReluBlock()(x)
        return x


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(8, name="dense")(x)), None


class Scanned(nn.Module):
    """A block outside a scan, where there is one, and those inside."""

    outside: bool

    @nn.compact
    def __call__(self, x):
        if self.outside:
            x = ResidualBlock(False, name="first")(x)
        block = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return block(name="blocks")(x, None)[0]


class Holder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="held")(x)


class Plain(nn.Module):
    """No block; the second layer is called twice, and the first holds another."""

    @nn.compact
    def __call__(self, x):
        again = nn.Dense(8, name="again")
        return again(nn.relu(again(Holder(name="first")(x))))


def signal(model, **options):
    x = standard((512, WIDTH))
    return signal_propagation(model, model.init(jax.random.key(0), x), x, **options)


def standard(shape):
    """Gaussian, each channel's mean 0 and variance 1."""
    x = gaussian(shape)
    return (x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)


def gaussian(shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def variances(found):
    return np.array([block.variance for block in found.blocks])


def test_variance_doubles_without_norm():
    found = signal(Stack(8))
    np.testing.assert_allclose(variances(found), 2.0 ** np.arange(1, 9), rtol=1e-5)
    assert found.growth == pytest.approx(2, rel=1e-5)
    np.testing.assert_allclose(
        [block.branch_variance for block in found.blocks], 2.0 ** np.arange(8), rtol=1e-5
    )
    assert [block.block for block in found.blocks] == [f"block{i}" for i in range(8)]


def test_second_moment_doubles_behind_relu():
    found = signal(ReluStack())
    moments = [block.variance + block.squared_mean for block in found.blocks]
    assert np.exp(np.polyfit(np.arange(6), np.log(moments), 1)[0]) == pytest.approx(2, rel=0.1)


def test_variance_grows_by_one_with_batch_norm():
    found = signal(Stack(8, normalised=True))
    np.testing.assert_allclose(variances(found), 1 + np.arange(1, 9), rtol=0.01)
    np.testing.assert_allclose([block.branch_variance for block in found.blocks], 1, rtol=1e-3)
    evaluated = signal(
        Stack(8, normalised=True), train=False
    )  # with running variances of 1 the norm does nothing
    assert evaluated.growth == pytest.approx(2, rel=1e-4)


def test_norm_free_follows_its_closed_form():
    alpha = 0.5
    found = signal(Stack(8, alpha=alpha, norm_free=True))
    np.testing.assert_allclose(variances(found), 1 + alpha**2 * np.arange(1, 9), rtol=1e-5)
    np.testing.assert_allclose(
        [block.branch_variance for block in found.blocks], alpha**2, rtol=1e-5
    )


def test_statistics_written_out_by_hand():
    x = gaussian((4, 5, 5, 3))
    model = nn.Conv(3, (3, 3))

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(3, (3, 3), name="conv")(x)

    variables = One().init(jax.random.key(0), x)
    y = np.asarray(model.apply({"params": variables["params"]["conv"]}, x))
    (row,) = signal_propagation(One(), variables, x).rows()
    assert row["squared_mean"] == pytest.approx((y.mean((0, 1, 2)) ** 2).mean(), rel=1e-4)
    assert row["variance"] == pytest.approx(y.var((0, 1, 2)).mean(), rel=1e-4)
    assert row["branch_variance"] is None


def test_the_branch_is_what_enters_the_sum_whatever_follows_on_it():
    """He et al. 2015: ReLU after the sum; the branch ends in batch norm, whose variance is 1 at the start."""
    model = create_model("cifar_resnet20", width=4)
    x = gaussian((32, 8, 8, 3))
    found = signal_propagation(model, jax.jit(model.init)(jax.random.key(0), x), x)
    np.testing.assert_allclose([block.branch_variance for block in found.blocks], 1, rtol=1e-3)


def test_which_blocks_are_shown():
    x = gaussian((16, 8))
    variables = Plain().init(jax.random.key(0), x)
    assert [block.block for block in signal_propagation(Plain(), variables, x).blocks] == [
        "first",
        "again",
        "again",
    ]
    chosen = signal_propagation(Plain(), variables, x, blocks=["first/held"])
    assert [block.block for block in chosen.blocks] == ["first/held"]
    with pytest.raises(InputError, match="block 'agan' is unknown; did you mean 'again'"):
        signal_propagation(Plain(), variables, x, blocks=["agan"])
    with pytest.raises(InputError, match="cannot take a batch"):
        signal_propagation(Plain(), variables, gaussian((16, 7)))


def test_blocks_inside_a_scan_are_named():
    x = gaussian((16, 8))
    mixed, hidden = Scanned(True), Scanned(False)
    variables = mixed.init(jax.random.key(0), x)
    assert signal_propagation(mixed, variables, x).blocks[0].block == "first"
    with pytest.raises(InputError, match="blocks blocks/dense run inside nn"):
        signal_propagation(mixed, variables, x, blocks=["first", "blocks/dense"])
    with pytest.raises(InputError, match="blocks blocks/dense run inside nn"):
        signal_propagation(hidden, hidden.init(jax.random.key(0), x), x)


def test_propagation_compiles_once_and_the_figure_says_what_was_found():
    found = signal(Stack(8))
    before = _signals._cache_size()
    signal(Stack(8))
    assert _signals._cache_size() == before
    ax = found.plot()
    assert (
        ax.get_title("left") == "Channel variance 2, after 8 blocks 256"
        and ax.get_yscale() == "log"
    )
    assert found.plot(ax) is ax


# Mean field ---------------------------------------------------------------------------------------------------------------------


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
    """Correlations of pairs of inputs after each layer of a random network, and the variance after the last."""
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


def test_mean_field_compiles_once_and_the_figure_says_what_was_found():
    found = mean_field(jnp.tanh, 1.5, 0.3)
    before = _value_and_slope._cache_size()
    mean_field(jnp.tanh, 1.3, 0.2)
    assert _value_and_slope._cache_size() == before
    assert "chaotic" in found.plot().get_title("left") and "correlations" not in found.rows()[0]


@pytest.mark.parametrize(
    ("sigma_w", "sigma_b", "name"),
    [(0.0, 0.1, "sigma_w"), (1.0, -0.1, "sigma_b"), (math.nan, 0.1, "sigma_w")],
)
def test_what_is_no_deviation(sigma_w, sigma_b, name):
    with pytest.raises(InputError, match=f"{name} is"):
        mean_field(jnp.tanh, sigma_w, sigma_b)
