"""Signal propagation against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import EVAL, TRAIN, Ghost, from_function, from_nnx
from deepjax.analysis.propagation.signal import signal_propagation
from deepjax.errors import InputError
from deepjax.models import create_model
from tests.zoo import Halting

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
    assert [block.layer for block in found.blocks] == [f"block{i}" for i in range(8)]


def test_second_moment_doubles_behind_relu():
    found = signal(ReluStack())
    moments = [block.variance + block.squared_mean for block in found.blocks]
    assert np.exp(np.polyfit(np.arange(6), np.log(moments), 1)[0]) == pytest.approx(2, rel=0.1)


def test_variance_grows_by_one_with_batch_norm():
    found = signal(Stack(8, normalised=True))
    np.testing.assert_allclose(variances(found), 1 + np.arange(1, 9), rtol=0.01)
    np.testing.assert_allclose([block.branch_variance for block in found.blocks], 1, rtol=1e-3)
    # With running variances of 1 the norm is the identity.
    evaluated = signal(Stack(8, normalised=True), mode=EVAL)
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
    assert [block.layer for block in signal_propagation(Plain(), variables, x).blocks] == [
        "first",
        "again",
        "again",
    ]
    chosen = signal_propagation(Plain(), variables, x, layers=["first/held"])
    assert [block.layer for block in chosen.blocks] == ["first/held"]
    with pytest.raises(InputError, match="layer 'agan' is unknown; did you mean 'again'"):
        signal_propagation(Plain(), variables, x, layers=["agan"])
    with pytest.raises(InputError, match="cannot take a batch"):
        signal_propagation(Plain(), variables, gaussian((16, 7)))


def test_blocks_inside_a_scan_are_named():
    x = gaussian((16, 8))
    mixed, hidden = Scanned(True), Scanned(False)
    variables = mixed.init(jax.random.key(0), x)
    assert signal_propagation(mixed, variables, x).blocks[0].layer == "first"
    with pytest.raises(InputError, match="layers blocks/dense run inside nn"):
        signal_propagation(mixed, variables, x, layers=["first", "blocks/dense"])
    with pytest.raises(InputError, match="layers blocks/dense run inside nn"):
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
    assert ax.get_title("left") == "Channel variance 2, after 8 blocks 256\n512 examples"
    assert ax.get_yscale() == "log" and found.plot(ax) is ax


class Lifted(nn.Module):
    """Residual blocks under a transform that hides their outputs."""

    transform: str

    @nn.compact
    def __call__(self, x, train=False):
        kinds = {"remat": nn.remat, "jit": nn.jit, "none": lambda block: block}
        block = kinds[self.transform](ResidualBlock)
        for i in range(3):
            x = block(True, 0.5, name=f"block{i}")(x)
        return nn.Dense(4, name="head")(x)


@pytest.mark.parametrize("transform", ["remat", "jit"])
def test_blocks_inside_remat_and_jit_are_measured(transform):
    x = 1 + gaussian((16, 8))
    variables = Lifted("none").init(jax.random.key(0), x)
    plain, lifted = (signal_propagation(Lifted(kind), variables, x) for kind in ("none", transform))
    for a, b in zip(plain.rows(), lifted.rows(), strict=True):
        assert a["layer"] == b["layer"] and b["branch_variance"] is not None
        assert list(b.values())[2:] == pytest.approx(list(a.values())[2:], rel=1e-5)


def test_a_block_in_a_loop_without_backward_pass_is_skipped():
    x = jnp.ones((2, 4))
    found = signal_propagation(Halting(), Halting().init(jax.random.key(0), x), x)
    assert [block.layer for block in found.blocks] == ["head"]
    assert found.skipped_blocks == ("cell",)


def test_moments_of_batches_are_those_of_all_examples():
    model = Stack(3, normalised=True)
    x = 1 + gaussian((32, 8)) * jnp.linspace(1, 2, 32)[:, None]
    variables = model.init(jax.random.key(0), x)
    halves = [(x[:16],), (x[16:],)]
    one, several = (signal_propagation(model, variables, each, mode=EVAL) for each in (x, halves))
    for a, b in zip(one.rows(), several.rows(), strict=True):
        assert list(b.values())[2:] == pytest.approx(list(a.values())[2:], rel=1e-5)
    ghosts = signal_propagation(model, variables, x, mode=Ghost(16))
    in_training = signal_propagation(model, variables, halves, mode=TRAIN)
    assert ghosts.rows() == in_training.rows() != signal_propagation(model, variables, x).rows()


class NnxSum(nnx.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.sum = nnx.Linear(8, 8, rngs=rngs), NnxSum()

    def __call__(self, x):
        return self.sum(x, self.dense(x))


class NnxStack(nnx.Module):
    def __init__(self, lift):
        self.lift, rngs = lift, nnx.Rngs(0)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])

    def __call__(self, x):
        for block in self.blocks:
            call = nnx.remat(lambda block, x: block(x)) if self.lift else lambda block, x: block(x)
            x = call(block, x)
        return x


@pytest.mark.parametrize("lift", [False, True])
def test_blocks_of_an_nnx_module_written_out(lift):
    module, x = NnxStack(lift), gaussian((16, 8))
    found = signal_propagation(*from_nnx(module), x)
    assert [block.layer for block in found.blocks] == ["blocks/0", "blocks/1"]
    for block, row in zip(module.blocks, found.blocks, strict=True):
        branch = block.dense(x)
        x = x + branch
        assert row.branch_variance == pytest.approx(float(branch.var(0).mean()), rel=1e-4)
        assert row.variance == pytest.approx(float(x.var(0).mean()), rel=1e-4)


def test_layers_by_pattern_and_what_has_none():
    x = gaussian((16, 8))
    found = signal_propagation(Stack(3), Stack(3).init(jax.random.key(0), x), x, layers="block[12]")
    assert [block.layer for block in found.blocks] == ["block1", "block2"]
    assert found.summary()["blocks"] == 2 and found.mode is TRAIN
    assert repr(found).splitlines()[1].split()[:2] == ["layer", "shape"]
    assert found.plot(title="Mine").get_title("left") == "Mine"
    with pytest.raises(InputError, match="is a function, which has no layers"):
        signal_propagation(from_function(lambda params, x: x @ params), jnp.ones((8, 2)), x)
    with pytest.raises(InputError, match="no longer takes blocks=; use layers="):
        signal_propagation(Stack(3), {}, x, blocks=["block1"])
