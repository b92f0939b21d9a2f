"""Networks of awkward layers: the instruments against jax.grad and jax.jvp of one real vector."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from deepjax.analysis import hvp, per_example_gradients, trace
from deepjax.analysis.core.mode import EVAL
from tests.analysis.core.test_params import from_vector, to_vector
from tests.properties.examples import examples
from tests.zoo import Attention, ComplexWeights, Partitioned, Tree, Weighted

FEATURES = 4


class Pair(nn.Module):
    """A tuple of its output and a switch that has no default."""

    @nn.compact
    def __call__(self, x, scale, *, train):
        y = nn.Dense(FEATURES)(x)
        return (jnp.tanh(y) if train else jnp.sin(y)) * scale, {"loss": jnp.mean(y)}


class Coder(nn.Module):
    """Parameters that other methods than the call use."""

    def setup(self):
        self.inner = nn.Dense(FEATURES)

    def encode(self, x):
        return jnp.tanh(self.inner(x))

    def decode(self, x):
        return x @ self.inner.variables["params"]["kernel"].T


class Step(nn.Module):
    """Of a scan: (carry, input) -> (carry, output)."""

    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(FEATURES)(x)), None


def scanned(x, train, name, layer=Step):
    loop = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    return loop(name=name)(x, None)[0]


def shared(x, train, name):
    dense = nn.Dense(FEATURES, name=name)
    return dense(jnp.tanh(dense(x)))


def convolution(x, train, name):
    return nn.Conv(1, (3,), name=name)(x[:, :, None])[:, :, 0]


def coded(x, train, name):
    coder = Coder(name=name)
    return coder.decode(coder.encode(x))


def widened(layer):
    """A layer of the zoo, which has three outputs, with a fourth."""
    return lambda x, train, name: jnp.pad(
        layer(name=name)(x), ((0, 0), (0, 1)), constant_values=0.5
    )


def mapped(x, train, name):
    layer = nn.vmap(
        nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=1, out_axes=1
    )
    return layer(2, name=name)(x.reshape(len(x), 2, 2)).reshape(x.shape)


KINDS = {
    "dense": lambda x, train, name: jnp.tanh(nn.Dense(FEATURES, name=name)(x)),
    "convolution": convolution,
    "weight norm": widened(Weighted),
    "boxes": widened(Partitioned),
    "complex": widened(ComplexWeights),
    "tree": widened(Tree),
    "attention": widened(Attention),
    "tuple and switch": lambda x, train, name: Pair(name=name)(x, 2.0, train=train)[0],
    "dropout": lambda x, train, name: nn.Dropout(
        0.5, rng_collection="noise", deterministic=not train
    )(x),
    "shared": shared,
    "jit": lambda x, train, name: nn.jit(nn.Dense)(FEATURES, name=name)(x),
    "remat": lambda x, train, name: nn.remat(nn.Dense)(FEATURES, name=name)(x),
    "scan": scanned,
    "scan of remat": lambda x, train, name: scanned(x, train, name, nn.remat(Step)),
    "vmap": mapped,
    "batch norm": lambda x, train, name: nn.BatchNorm(use_running_average=not train, name=name)(x),
    "other methods": coded,
}


class Chain(nn.Module):
    """Layers of these kinds, and a head; evaluation by default, or by a switch of another name."""

    kinds: tuple[str, ...]

    @nn.compact
    def __call__(self, x, train=False):
        for place, kind in enumerate(self.kinds):
            x = KINDS[kind](x, train, f"layer{place}")
        return nn.Dense(3, name="head")(x)


class Deterministic(Chain):
    """The switch the other way round, and training by default."""

    @nn.compact
    def __call__(self, x, deterministic=False):
        return Chain(self.kinds, name="chain")(x, train=not deterministic)


CHAINS = {Chain: {}, Deterministic: {"deterministic": True}}


def sampled(model, x, seed, keywords):
    """Variables without compiling an initialisation; batch statistics are positive."""
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    rng = np.random.default_rng(seed)

    def fill(leaf, low, high):
        draws = [rng.uniform(low, high, leaf.shape) for _ in range(2)]
        return (draws[0] + 1j * draws[1] if jnp.iscomplexobj(leaf) else draws[0]).astype(leaf.dtype)

    shapes = jax.eval_shape(lambda: model.init(keys, x, **keywords))
    ranges = {"params": (-1, 1), "batch_stats": (0.5, 1.5)}
    return {
        name: jax.tree.map(lambda leaf, r=ranges[name]: fill(leaf, *r), tree)
        for name, tree in shapes.items()
    }


def products(given, vector, losses):
    """The Hessian times a vector of ones and minus ones."""
    _, variables, _ = given
    direction = np.resize([1.0, -1.0, 1.0], vector.shape).astype(np.float32)
    gradient = jax.grad(lambda vector: losses(vector).mean())
    expected = jax.jit(lambda: jax.jvp(gradient, (vector,), (direction,))[1])()
    same(to_vector(hvp(*given, from_vector(direction, variables["params"]))), expected)


def examples_of(given, vector, losses):
    """Every example's gradient, and what is summed up of them."""
    found, expected = per_example_gradients(*given, keep=True), jax.jit(jax.jacrev(losses))(vector)
    kept = [
        to_vector(jax.tree.map(operator.itemgetter(i), found.gradients))
        for i in range(len(expected))
    ]
    same(kept, expected)
    assert sum(row.parameters for row in found.layers) == vector.size
    same(np.linalg.norm([row.mean_norm for row in found.layers]), np.linalg.norm(expected.mean(0)))


def layers(given, vector, losses):
    """Norms of parameters and gradients add up over layers; all rows of a layer have one norm."""
    gradient = jax.jit(jax.grad(lambda vector: losses(vector).mean()))(vector)
    rows = {row.layer: row for row in trace(*given, mode=EVAL).layers}.values()
    same(np.linalg.norm([row.weight_norm or 0 for row in rows]), np.linalg.norm(vector))
    same(
        np.linalg.norm([row.parameter_gradient_norm or 0 for row in rows]), np.linalg.norm(gradient)
    )


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@examples(few=8, many=1_000)
@given(
    compare=st.sampled_from([products, examples_of, layers]),
    chain=st.sampled_from(list(CHAINS)),
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3),
    seed=st.integers(0, 2**31 - 1),
)
def test_numbers_of_any_module(compare, chain, kinds, seed):
    model, keywords = chain(tuple(kinds)), CHAINS[chain]
    x, labels = (
        np.random.default_rng(seed).normal(size=(4, FEATURES)).astype(np.float32),
        np.array([0, 1, 2, 1], np.int32),
    )
    variables = sampled(model, x, seed, keywords)
    params, rest = (
        variables["params"],
        {name: tree for name, tree in variables.items() if name != "params"},
    )

    def losses(vector):
        outputs = model.apply({**rest, "params": from_vector(vector, params)}, x, **keywords)
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], 1)[:, 0]

    compare((model, variables, (x, labels)), to_vector(params), losses)
