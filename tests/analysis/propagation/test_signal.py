"""Signal propagation against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis.propagation.signal import signal_propagation
from deepjax.errors import InputError
from deepjax.models import create_model

WIDTH = 128


def quarter_turns(key, shape, dtype=jnp.float32):
    return jnp.kron(jnp.eye(shape[0] // 2, dtype=dtype), jnp.array([[0, 1], [-1, 0]], dtype))


class Add(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class ResidualBlock(nn.Module):
    """x + alpha F(x / beta), with F a quarter turn of channel pairs: uncorrelated with x in sum."""

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
    # With running variances of 1 the norm is the identity.
    evaluated = signal(Stack(8, normalised=True), train=False)
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
    """He et al. 2015: ReLU after the sum; the branch ends in batch norm, of variance 1."""
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


def counted_relu(x):
    TRACES.append(x.shape)
    return nn.relu(x)


TRACES: list[tuple[int, ...]] = []


class Counted(nn.Module):
    """Its call counts how often it is traced."""

    @nn.compact
    def __call__(self, x):
        return counted_relu(nn.Dense(8, name="dense")(x))


def test_propagation_compiles_once():
    x = gaussian((16, 8))
    variables = Counted().init(jax.random.key(0), x)
    signal_propagation(Counted(), variables, x)
    traces = len(TRACES)
    signal_propagation(Counted(), jax.tree.map(lambda leaf: leaf + 1, variables), 2 * x)
    assert len(TRACES) == traces


def test_the_figure_shows_the_finding():
    found = signal(Stack(8))
    ax = found.plot()
    assert ax.get_title("left") == "Channel variance 2, after 8 blocks 256"
    assert ax.get_yscale() == "log" and found.plot(ax) is ax
