"""Kernels and linearisations of networks and batches of every form, and of selected layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from deepjax.analysis import EVAL, TRAIN, Ghost
from deepjax.analysis.ntk.drift import kernel_drift
from deepjax.analysis.ntk.kernel import ntk
from deepjax.analysis.ntk.linearised import linearised, linearised_training
from deepjax.errors import InputError
from tests.analysis.ntk.ntk_cases import Cnn, gaussian, init
from tests.analysis.three_forms import BATCHES, FORMS, LINEN, VARIABLES, X, Y

HALVES = [(X[:4], Y[:4]), (X[4:], Y[4:])]
FIRST = {"linen": "first", "nnx": "first", "function": "0"}


def params_of(form):
    _, variables = FORMS[form]
    return variables if form == "function" else variables["params"]


def kernel(layer=None, rows=X, columns=X):
    """(examples, examples, outputs, outputs), from Jacobians of the linen network."""

    def jacobian(x):
        found = jax.jacrev(lambda params: LINEN.apply({"params": params}, x))(VARIABLES["params"])
        leaves = jax.tree.leaves(found if layer is None else found[layer])
        flat = [leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves]
        return np.asarray(jnp.concatenate(flat, axis=-1), float)

    return np.einsum("iap,jbp->ijab", jacobian(rows), jacobian(columns))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [*BATCHES, "halves"])
def test_kernels(form, batch):
    network, variables = FORMS[form]
    data = HALVES if batch == "halves" else BATCHES[batch]
    found = ntk(network, variables, data, output="full", chunk=3)
    np.testing.assert_allclose(found.matrix, kernel(), rtol=1e-4, atol=1e-5)
    own = ntk(network, variables, data, layers=FIRST[form], output="full")
    np.testing.assert_allclose(own.matrix, kernel("first"), rtol=1e-4, atol=1e-5)
    assert own.parameters == 24 and set(own.layers) >= {FIRST[form]}
    between = ntk(network, variables, data, X[:3], output="full")
    np.testing.assert_allclose(between.matrix, kernel(columns=X[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_drift_of_one_layers_kernel(form):
    network, variables = FORMS[form]
    double = jax.tree.map(lambda leaf: 2 * leaf, variables)
    found = kernel_drift(network, variables, double, (X, Y), layers=FIRST[form])
    before = ntk(network, variables, X, layers=FIRST[form]).matrix
    after = ntk(network, double, X, layers=FIRST[form]).matrix
    drift = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert found.drift == pytest.approx(drift, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", [None, "first"])
def test_first_taylor_polynomials(form, layer):
    network, variables = FORMS[form]
    params = params_of(form)
    chosen = layer and FIRST[form]
    full = jax.tree.map(lambda leaf: 1.1 * leaf, params)

    given = full
    if layer:
        given = {"0": {"0": full[0][0], "1": full[0][1]}} if form == "function" else full
        given = {chosen: given[chosen]}
    found = linearised(network, variables, layers=chosen)(given, {"image": X, "label": Y})
    step = jax.tree.map(lambda leaf: 0.1 * leaf, VARIABLES["params"])
    if layer:
        step = {name: step[name] if name == layer else _zeros(step[name]) for name in step}
    value, change = jax.jvp(
        lambda params: LINEN.apply({"params": params}, X), (VARIABLES["params"],), (step,)
    )
    np.testing.assert_allclose(found, value + change, rtol=1e-4, atol=1e-5)


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


@pytest.mark.parametrize("form", FORMS)
def test_training_on_several_batches_is_training_on_all(form):
    network, variables = FORMS[form]
    options = {"steps": 3, "learning_rate": 0.2}
    several = linearised_training(network, variables, HALVES, **options)
    joined = linearised_training(network, variables, (X, Y), **options)
    for one, other in zip(several.rows(), joined.rows(), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert several.examples == joined.examples == len(X)
    assert jax.tree.structure(joined.params) == jax.tree.structure(params_of(form))
    own = linearised_training(network, variables, (X, Y), **options, layers=FIRST[form])
    moved, start = ravel_pytree(own.params)[0], ravel_pytree(params_of(form))[0]
    changed = np.asarray(moved != start)
    assert changed[:24].any() and not changed[24:].any()


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(6, name="first")(x)))
        return nn.Dense(2, name="head")(x)


def test_dropout_has_one_mask():
    """In training every example is seen alone, through the mask of the key."""
    variables, key = Dropped().init(jax.random.key(0), X), jax.random.key(4)

    def outputs(params, x):
        rngs = {"dropout": key}
        return Dropped().apply({"params": params}, x[None], train=True, rngs=rngs)[0]

    def rows(x):
        found = jax.jacrev(outputs)(variables["params"], x)
        leaves = jax.tree.leaves(found)
        return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)

    jacobian = jax.vmap(rows)(X)
    wanted = jnp.einsum("iap,jap->ij", jacobian, jacobian)
    for mode in (TRAIN, Ghost(2)):
        found = ntk(Dropped(), variables, X, mode=mode, key=key, output="trace")
        np.testing.assert_allclose(found.matrix, wanted, rtol=1e-4, atol=1e-6)
    evaluated = ntk(Dropped(), variables, X, output="trace")
    assert not np.allclose(evaluated.matrix, wanted, rtol=0.1)
    function = linearised(Dropped(), variables, mode=TRAIN, key=key)
    whole = Dropped().apply(variables, X, train=True, rngs={"dropout": key})
    np.testing.assert_allclose(function(variables["params"], X), whole, rtol=1e-5)
    run = linearised_training(
        Dropped(), variables, (X, Y % 2), mode=TRAIN, key=key, steps=1, learning_rate=0.1
    )
    half = 0.5 * jnp.mean(jnp.sum(jnp.square(whole - jax.nn.one_hot(Y % 2, 2)), axis=1))
    assert run.loss[0] == pytest.approx(float(half), rel=1e-5) and run.mode is TRAIN


@pytest.mark.parametrize("mode", [TRAIN, Ghost(2)], ids=repr)
def test_batch_statistics_leave_no_output_of_an_example(mode):
    x = gaussian((4, 6, 6, 1))
    variables, options = init(Cnn(), x), {"steps": 1, "learning_rate": 0.1}
    for call in (
        lambda: ntk(Cnn(), variables, x, mode=mode),
        lambda: kernel_drift(Cnn(), variables, variables, x, mode=mode),
        lambda: linearised(Cnn(), variables, mode=mode),
        lambda: linearised_training(Cnn(), variables, (x, gaussian((4, 2))), mode=mode, **options),
    ):
        with pytest.raises(InputError, match=r"allowed: EVAL, because under batch statistics"):
            call()
    assert ntk(Cnn(), variables, x, mode=EVAL).plot().get_title("left").count("running") == 1
