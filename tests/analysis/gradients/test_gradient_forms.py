"""Gradients of examples and inputs for networks, batches and inputs of every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.flatten_util import ravel_pytree

from deepjax.analysis import EVAL, TRAIN, Ghost, from_function, from_nnx
from deepjax.analysis.gradients.noise_scale import noise_scale
from deepjax.analysis.gradients.per_example import per_example_gradients
from deepjax.analysis.gradients.shattering import gradient_line, shattering
from deepjax.errors import InputError
from tests.analysis.gradients.gradient_networks import Net, images, initialised
from tests.analysis.three_forms import BATCHES, EXAMPLES, FORMS, LINEN, VARIABLES, X, Y

HALVES = [(X[:4], Y[:4]), (X[4:], Y[4:])]


def params_of(name):
    _, variables = FORMS[name]
    return variables if name == "function" else variables["params"]


def direct(name):
    """(examples, parameters): the gradient of each example, in the order of the form's leaves."""
    order = {"linen": ("bias", "kernel"), "nnx": ("bias", "kernel"), "function": ("kernel", "bias")}

    def one(x, y):
        def loss(params):
            return -jax.nn.log_softmax(LINEN.apply({"params": params}, x[None]))[0, y]

        found = jax.grad(loss)(VARIABLES["params"])
        leaves = [found[layer][leaf] for layer in ("first", "head") for leaf in order[name]]
        return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])

    return np.asarray(jax.vmap(one)(X, Y), float)


def flattened(tree):
    return np.asarray(jax.vmap(lambda each: ravel_pytree(each)[0])(tree), float)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [*BATCHES, "halves"])
def test_gradients_of_examples(form, batch):
    network, variables = FORMS[form]
    data = HALVES if batch == "halves" else BATCHES[batch]
    found = per_example_gradients(network, variables, data, keep=True, chunk=3)
    assert jax.tree.structure(found.gradients) == jax.tree.structure(params_of(form))
    wanted = direct(form)
    np.testing.assert_allclose(flattened(found.gradients), wanted, rtol=1e-4, atol=1e-6)
    summary = found.summary()
    assert (summary["gradients"], found.examples) == (EXAMPLES, EXAMPLES)
    assert summary["mean gradient's norm"] == pytest.approx(np.linalg.norm(wanted.mean(0)))
    assert summary["variance"] == pytest.approx(wanted.var(0, ddof=1).sum(), rel=1e-4)


@pytest.mark.parametrize(("form", "layer"), [("linen", "head"), ("function", "1")])
def test_gradients_of_selected_layers(form, layer):
    network, variables = FORMS[form]
    found = per_example_gradients(network, variables, (X, Y), keep=True, layers=layer)
    assert [row.layer for row in found.layers] == [layer] and list(found.gradients) == [layer]
    size = found.layers[0].parameters
    np.testing.assert_allclose(flattened(found.gradients), direct(form)[:, -size:], atol=1e-6)
    parts = [
        noise_scale(network, variables, (X, Y), small=1, layers=each).trace_sigma
        for each in (layer, "first" if form == "linen" else "0")
    ]
    total = noise_scale(network, variables, (X, Y), small=1).trace_sigma
    assert sum(parts) == pytest.approx(total, rel=1e-4)


def test_streams_differ_between_examples_and_keys():
    """Dropout: gradients of equal examples differ, and a key gives them again."""
    model = Net(normalised=False, rate=0.5)
    x, y = images(1)
    batch = (jnp.repeat(x, 4, axis=0), jnp.repeat(y, 4))
    variables = initialised(model)

    def gradients(seed):
        key = jax.random.key(seed)
        options = {"mode": TRAIN, "key": key, "keep": True, "layers": "head"}
        return flattened(per_example_gradients(model, variables, batch, **options).gradients)

    first, second, again = gradients(0), gradients(1), gradients(0)
    assert len(np.unique(first.round(5), axis=0)) > 1
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("form", FORMS)
def test_the_noise_scale_of_several_batches(form):
    """The mean of the estimates of each, and ghost batches of one example are the examples."""
    network, variables = FORMS[form]
    seen = []
    progress = {"progress": lambda *done: seen.append(done)}
    found = noise_scale(network, variables, HALVES, small=2, **progress)
    singles = [noise_scale(network, variables, batch, small=2).estimates[0] for batch in HALVES]
    np.testing.assert_allclose(found.estimates, singles, rtol=1e-5)
    assert seen == [(1, 2), (2, 2)]
    ghost = noise_scale(network, variables, HALVES, small=2, mode=Ghost(1))
    np.testing.assert_allclose(ghost.estimates, found.estimates, rtol=1e-4)
    assert repr(found).startswith("NoiseScale: scale ") and len(found.rows()) == 2
    assert found.plot(title="Mine").get_title("left") == "Mine"
    assert found.plot().get_title("left").endswith("\n8 examples")


def input_cosines(gradients):
    flat = np.asarray(gradients, float).reshape(len(gradients), -1)
    units = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return units @ units.T


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", ["dict", "halves", "inputs"])
def test_gradients_at_inputs(form, batch):
    network, variables = FORMS[form]
    data = {"halves": HALVES, "inputs": X}.get(batch, BATCHES["dict"])
    found = shattering(network, variables, data)
    gradients = jax.grad(lambda x: jnp.sum(LINEN.apply(VARIABLES, x)))(X)
    np.testing.assert_allclose(found.cosines, input_cosines(gradients), atol=1e-5)
    assert found.examples == len(found.rows()) == EXAMPLES


class Mixed(nn.Module):
    """Embedded tokens and two inputs of floats, given by name; a scalar for all examples."""

    @nn.compact
    def __call__(self, *, tokens, x, z, scale):
        embedded = nn.Embed(5, 3, name="embed")(tokens).mean(1)
        return nn.Dense(2, name="head")(jnp.tanh(scale * x * embedded) + jnp.square(z))


def mixed(count=6):
    rng = np.random.default_rng(0)
    return {
        "tokens": jnp.asarray(rng.integers(0, 5, (count, 4))),
        "x": jnp.asarray(rng.standard_normal((count, 3)), jnp.float32),
        "z": jnp.asarray(rng.standard_normal((count, 1)), jnp.float32),
        "scale": jnp.float32(0.7),
    }


def test_gradients_at_several_inputs_by_name():
    batch = mixed()
    variables = Mixed().init(jax.random.key(0), **batch)
    gradients = jax.grad(
        lambda x, z: jnp.sum(Mixed().apply(variables, **{**batch, "x": x, "z": z})), (0, 1)
    )(batch["x"], batch["z"])
    found = shattering(Mixed(), variables, batch)
    wanted = input_cosines(jnp.concatenate(gradients, axis=1))
    np.testing.assert_allclose(found.cosines, wanted, atol=1e-5)
    with pytest.raises(InputError, match="batch is 'of inputs int32'; allowed: floats"):
        embed = nn.Embed(5, 3)
        shattering(embed, embed.init(jax.random.key(0), batch["tokens"]), batch["tokens"])


def test_a_line_of_several_inputs_by_name():
    """d/ds of sum(a x_s + b z_s^2 + the start's tokens) along the joint direction of x and z."""

    def network(params, *, x, z, tokens):
        return params["a"] * x + params["b"] * jnp.square(z) + tokens

    params = {"a": jnp.float32(2.0), "b": jnp.float32(0.5)}
    start = {"x": jnp.float32(0.0), "z": jnp.float32(-1.0), "tokens": jnp.int32(3)}
    end = {"x": jnp.float32(3.0), "z": jnp.float32(3.0), "tokens": jnp.int32(4)}
    found = gradient_line(from_function(_floats(network)), params, start, end, 9)
    z = np.linspace(-1, 3, 9)
    np.testing.assert_allclose(found.gradient, 2 * 3 / 5 + z * 4 / 5, rtol=1e-5)
    assert found.spacing == pytest.approx(5 / 8) and len(found.rows()) == 5
    assert repr(found).startswith("GradientLine: correlated points ")
    assert found.plot(title="Mine").get_title("left") == "Mine"


def _floats(network):
    def with_floats(params, *, x, z, tokens):
        return network(params, x=x, z=z, tokens=tokens.astype(jnp.float32))

    return with_floats


class Normed(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(self.rate, deterministic=not train)(nn.Dense(6, name="dense")(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dense(2, name="head")(nn.relu(x))


class NnxNormed(nnx.Module):
    def __init__(self, variables, rate):
        rngs = nnx.Rngs(0)
        self.dense, self.head = nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        for tree in variables.values():
            for name, leaves in tree.items():
                for leaf, value in leaves.items():
                    getattr(getattr(self, name), leaf).set_value(value)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.dropout(self.dense(x)))))


@pytest.mark.parametrize("mode", [EVAL, TRAIN, Ghost(4)], ids=repr)
def test_batch_statistics_without_dropout_in_nnx(mode):
    """Equal to linen without dropout; ghost batches are the batches of a list."""
    variables = jax.tree.map(lambda leaf: leaf + 0.2, Normed().init(jax.random.key(0), X))
    wanted = shattering(Normed(), variables, X, mode=mode)
    network, own = from_nnx(NnxNormed(variables, 0.5))
    found = shattering(network, own, X, mode=mode)
    np.testing.assert_allclose(found.cosines, wanted.cosines, atol=1e-5)
    assert found.mode is mode and found.has_batch_norm
    if mode.ghost:
        parts = shattering(Normed(), variables, [(X[:4], None), (X[4:], None)], mode=TRAIN)
        np.testing.assert_allclose(wanted.cosines, parts.cosines, atol=1e-6)
    else:
        other = shattering(Normed(0.5), variables, X, mode=mode)
        np.testing.assert_allclose(wanted.cosines, other.cosines, rtol=1e-6)


def test_a_function_keeps_its_batch_statistics_to_itself():
    def network(params, batch_stats, x, train):
        return (x - (x.mean(0, keepdims=True) if train else batch_stats["mean"][None])) @ params

    variables = {"params": jnp.ones((5, 2)), "batch_stats": {"mean": jnp.zeros(5)}}
    assert shattering(from_function(network), variables, X, mode=EVAL).cosine == pytest.approx(1)
    with pytest.raises(InputError, match="network does not return its batch statistics") as error:
        shattering(from_function(network), variables, X)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="under batch statistics an example has no gradient"):
        per_example_gradients(from_function(network), variables, (X, Y % 2), mode=TRAIN)
