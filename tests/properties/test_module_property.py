"""Networks made of layers of the awkward kinds: the instruments' numbers against jax.grad and jax.jvp of one real vector."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from deepjax.analysis import hvp, per_example_gradients, trace
from tests.analysis.test_params import from_vector, random_like, to_vector
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
    return lambda x, train, name: jnp.pad(layer(name=name)(x), ((0, 0), (0, 1)), constant_values=0.5)


def mapped(x, train, name):
    layer = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=1, out_axes=1)
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
    "dropout": lambda x, train, name: nn.Dropout(0.5, rng_collection="noise", deterministic=not train)(x),
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


@examples(few=6, many=1_000)
@given(
    chain=st.sampled_from(list(CHAINS)),
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3),
    seed=st.integers(0, 2**31 - 1),
)
def test_norms_and_products_of_any_module(chain, kinds, seed):
    model = chain(tuple(kinds))
    x, labels = jax.random.normal(jax.random.key(seed), (4, FEATURES)), jnp.array([0, 1, 2, 1])
    keys = {"params": jax.random.key(seed), "noise": jax.random.key(1)}
    variables = jax.jit(lambda: model.init(keys, x, **CHAINS[chain]))()
    params, rest = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    vector, direction = to_vector(params), random_like(params, seed)

    def losses(vector):
        outputs = model.apply({**rest, "params": from_vector(vector, params)}, x, **CHAINS[chain])
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], 1)[:, 0]

    @jax.jit
    def derivatives(vector, direction):
        gradient = jax.grad(lambda vector: losses(vector).mean())
        return jax.jacrev(losses)(vector), jax.jvp(gradient, (vector,), (direction,))[1]

    each, product = jax.device_get(derivatives(vector, to_vector(direction)))
    scale = np.abs(product).max()
    np.testing.assert_allclose(to_vector(hvp(model, variables, (x, labels), direction)), product, rtol=1e-3, atol=1e-4 * scale)
    found = per_example_gradients(model, variables, (x, labels), keep=True)
    np.testing.assert_allclose(jax.vmap(to_vector)(found.gradients), each, rtol=1e-3, atol=1e-4 * np.abs(each).max())
    assert sum(row.parameters for row in found.layers) == vector.size
    rows = trace(model, variables, (x, labels), train=False).layers
    for column, expected in (("weight_norm", vector), ("parameter_gradient_norm", each.mean(0))):
        # A row for each array that a layer returns: of several rows of one layer the norms are those of the same parameters.
        norms = {row.layer: getattr(row, column) or 0 for row in rows}
        np.testing.assert_allclose(np.linalg.norm(list(norms.values())), np.linalg.norm(expected), rtol=1e-3)
    layers = {row.layer: row.mean_norm for row in found.layers}
    assert layers == {row.layer: row.parameter_gradient_norm for row in rows if row.layer in layers} or np.allclose(
        list(layers.values()), [next(r.parameter_gradient_norm for r in rows if r.layer == name) for name in layers], rtol=1e-3
    )
