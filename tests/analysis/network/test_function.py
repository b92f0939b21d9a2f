"""Functions as networks: the arguments they take, and modules of Equinox and Haiku."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from deepjax.analysis import (
    EVAL,
    TRAIN,
    cost,
    cross_entropy,
    empirical_fisher,
    from_function,
    gradient_confusion,
    gradient_covariance,
    hessian,
    integrated_gradients,
    linear_interpolation,
    noise_scale,
    ntk,
    per_example_gradients,
    shattering,
    top_eigenvalues,
    trace,
)
from deepjax.analysis.network.module import apply_module, entry
from deepjax.errors import InputError

X = jax.random.normal(jax.random.key(1), (6, 4))
Y = jnp.arange(6) % 3
W = jax.random.normal(jax.random.key(0), (4, 3))


def outputs(network, variables, batch=(X, Y), train=False, key=None):
    return apply_module(*entry(network, variables), batch, train, key)[0]


def positional(w, x, /):
    return x @ w


def keyword(w, *, x, scale=1.0):
    return scale * (x @ w)


def graph(w, nodes, senders, receivers):
    """A message from each sender to its receiver, and the mean over the nodes."""
    messages = nodes[senders] @ w
    return jax.ops.segment_sum(messages, receivers, len(nodes)).mean(0, keepdims=True)


NODES = {"nodes": X, "senders": jnp.array([0, 1, 5]), "receivers": jnp.array([2, 2, 3])}


@pytest.mark.parametrize(
    ("function", "batch", "wanted"),
    [
        (positional, (X, Y), X @ W),
        (positional, X, X @ W),
        (positional, {"image": X, "label": Y}, X @ W),
        (positional, {"tokens": X, "target": Y}, X @ W),
        (keyword, {"x": X, "y": Y}, X @ W),
        (keyword, ({"x": X}, Y), X @ W),
        (keyword, {"x": X, "scale": jnp.float32(2), "y": Y}, 2 * X @ W),
        (lambda w, a, b: (a + b) @ w, ((X, X), Y), 2 * X @ W),
        (lambda w, batch: batch["a"] @ w, ({"a": X}, Y), X @ W),
        (lambda w, x: x.astype(jnp.float32) @ w, (jnp.ones((2, 4), jnp.uint8), None), None),
        (graph, {**NODES, "label": Y[:1]}, graph(W, **NODES)),
    ],
)
def test_inputs_of_any_form(function, batch, wanted):
    found = outputs(from_function(function), W, batch)
    wanted = jnp.ones((2, 4)) @ W if wanted is None else wanted
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_graph_has_no_axis_of_examples():
    """Only what looks at single examples needs one."""
    network, batch = from_function(graph), {**NODES, "label": Y[:1]}
    loss = cross_entropy(graph(W, **NODES), batch)
    assert trace(network, W, batch).loss == pytest.approx(float(loss), rel=1e-6)
    wanted = jax.hessian(lambda w: cross_entropy(graph(w, **NODES), batch))(W).reshape(12, 12)
    np.testing.assert_allclose(hessian(network, W, batch).todense(), wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="whose first axis is the examples'"):
        per_example_gradients(network, W, batch)


def noisy(w, x, key, train):
    return (x + jax.random.normal(key, x.shape) if train else x) @ w


def test_a_key_and_a_mode():
    network, key = from_function(noisy), jax.random.key(7)
    np.testing.assert_allclose(outputs(network, W, key=key), X @ W, rtol=1e-6)
    first, again, other = (outputs(network, W, train=True, key=k) for k in (key, key, None))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    named = from_function(lambda w, x, loud: x @ w * (1 + loud), mode_argument="loud")
    np.testing.assert_allclose(outputs(named, W, train=True), 2 * X @ W, rtol=1e-6)


def test_collections_and_the_whole_of_the_variables():
    def scaled(params, state, x):
        return x @ params * state["scale"]

    def whole(variables, x):
        return scaled(variables["params"], variables["state"], x)

    variables = {"params": W, "state": {"scale": jnp.float32(3)}}
    for function in (scaled, whole):
        np.testing.assert_allclose(
            outputs(from_function(function), variables), 3 * X @ W, rtol=1e-4
        )


def shifted(params, x, scale=1.0, key=None):
    return scale * (x @ params) + jax.random.normal(key, (1, 3))


def stateful(params, x, scale=1.0, state=None):
    return scale * (x @ params) * state


def moded(params, x, train, key):
    return x @ params + int(train) * jax.random.normal(key, (1, 3))


def two(params, a, b, key):
    return (a - b) @ params + jax.random.normal(key, (1, 3))


def alone(params, x, scale=2.0, key=None, /):
    return shifted(params, x, scale, key)


def many(params, train, *inputs, key):
    return int(train) * sum(inputs) @ params + jax.random.normal(key, (1, 3))


KEY = jax.random.key(7)
NORMAL = jax.random.normal(KEY, (1, 3))
VARIABLES = {"params": W, "state": jnp.float32(3)}


@pytest.mark.parametrize(
    ("function", "variables", "batch", "wanted"),
    [
        (shifted, W, (X, Y), X @ W + NORMAL),
        (shifted, W, {"x": X, "scale": jnp.float32(2), "label": Y}, 2 * X @ W + NORMAL),
        (stateful, VARIABLES, (X, Y), 3 * X @ W),
        (moded, W, (X, Y), X @ W + NORMAL),
        (moded, W, {"x": X, "label": Y}, X @ W + NORMAL),
        (two, W, {"a": X, "b": 3 * X, "label": Y}, -2 * X @ W + NORMAL),
        (two, W, ((X, 3 * X), Y), -2 * X @ W + NORMAL),
        (alone, W, (X, Y), 2 * X @ W + NORMAL),
        (many, W, ((X, 2 * X), Y), 3 * X @ W + NORMAL),
    ],
)
def test_keys_and_collections_after_what_is_left_out_or_named(function, variables, batch, wanted):
    found = outputs(from_function(function), variables, batch, train=True, key=KEY)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def centred(params, state, x, is_training):
    """Normalised by the batch, with state of another name than flax's."""
    mean = x.mean(0, keepdims=True) if is_training else state["mean"][None]
    return (x - mean) @ params


SINGLES = {
    "per_example_gradients": per_example_gradients,
    "ntk": ntk,
    "empirical_fisher": empirical_fisher,
    "gradient_covariance": gradient_covariance,
    "gradient_confusion": gradient_confusion,
    "shattering": shattering,
}


@pytest.mark.parametrize("name", SINGLES)
def test_single_examples_in_training_are_refused_for_a_function_with_state(name):
    variables = {"params": W, "state": {"mean": jnp.ones(4), "count": jnp.zeros((), jnp.int32)}}
    network = from_function(centred)
    SINGLES[name](network, variables, (X, Y), mode=EVAL)
    with pytest.raises(InputError, match="batch statistics"):
        SINGLES[name](network, variables, (X, Y), mode=TRAIN)


def test_a_function_with_state_on_whole_batches_in_training():
    variables = {"params": W, "state": {"mean": jnp.ones(4), "count": jnp.zeros((), jnp.int32)}}
    network, batch = from_function(centred), (X, Y)

    def loss(params, x=X, y=Y):
        return cross_entropy((x - x.mean(0, keepdims=True)) @ params, (x, y))

    for each in (batch, {"x": X, "label": Y}):
        assert trace(network, variables, each).loss == pytest.approx(float(loss(W)), rel=1e-5)
    found = linear_interpolation(network, variables, variables, batch, alphas=[0, 1], mode=TRAIN)
    np.testing.assert_allclose(found.loss, loss(W), rtol=1e-5)
    full = jax.hessian(loss)(W).reshape(12, 12)
    found = hessian(network, variables, batch, mode=TRAIN).todense()
    np.testing.assert_allclose(found, full, rtol=1e-4, atol=1e-6)
    small = [jax.grad(loss)(W, X[at : at + 3], Y[at : at + 3]) for at in (0, 3)]
    squares = [float(jnp.sum(jnp.square(each))) for each in (*small, (small[0] + small[1]) / 2)]
    found = noise_scale(network, variables, batch, mode=TRAIN, small=3)
    g2 = (6 * squares[2] - 3 * (squares[0] + squares[1]) / 2) / 3
    assert found.g2 == pytest.approx(g2, rel=1e-3, abs=1e-5)
    found = integrated_gradients(network, variables, X, mode=TRAIN, classes=0)
    assert list(found.attributions) == ["x"] and found.rows()[0]["batch"] == 0


def scored(params, state, rng, images, is_training):
    return jnp.tanh((images - int(is_training) * images.mean(0, keepdims=True)) @ params) @ state


def test_attributions_have_the_name_of_the_input():
    variables = {"params": W, "state": jnp.ones(3)}
    found = integrated_gradients(from_function(scored), variables, X)
    assert list(found.attributions) == ["images"]


def test_an_output_of_several():
    network = from_function(lambda w, x: {"logits": x @ w, "aux": (x, x)}, output="logits")
    np.testing.assert_allclose(outputs(network, W), X @ W, rtol=1e-6)
    assert ntk(network, W, X).matrix.shape == (6, 6)
    with pytest.raises(InputError, match="a dict with 'aux', 'logits'"):
        outputs(from_function(lambda w, x: {"aux": x, "logits": x @ w}, output="none"), W)


def test_costs_are_of_the_function():
    report = cost(from_function(positional, params=W), (4,))
    assert (report.total.macs, report.total.params) == (12, 12)
    with pytest.raises(InputError, match=r"from_function\(function, params=\.\.\.\)"):
        cost(from_function(positional), (4,))


class Dropping(eqx.Module):
    """Dropout, and a static field, by Equinox's conventions: one example at a time."""

    first: eqx.nn.Linear
    last: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(4, 5, key=one), eqx.nn.Linear(5, 3, key=two)
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, key, inference):
        x = self.dropout(jnp.tanh(self.first(x)), key=key, inference=inference)
        return self.last(x)


def test_an_equinox_module():
    module = Dropping(jax.random.key(3))
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def apply(params, x, key, inference=False):
        module = eqx.combine(params, static)
        keys = jax.random.split(key, len(x))
        return jax.vmap(lambda x, key: module(x, key, inference))(x, keys)

    network, key = from_function(apply), jax.random.key(5)
    for mode in (EVAL, TRAIN):

        def loss(params, inference=not mode.train):
            return cross_entropy(apply(params, X, key, inference), (X, Y))

        value, gradient = jax.value_and_grad(loss)(params)
        report = trace(network, params, (X, Y), mode=mode, key=key)
        assert report.loss == pytest.approx(float(value), rel=1e-6)
        norm = float(jnp.linalg.norm(ravel_pytree(gradient)[0]))
        assert report.summary()["gradient norm"] == pytest.approx(norm, rel=1e-5)
    assert {row.layer for row in report.layers} == {"first", "last"}
    product = hessian(network, params, (X, Y)) @ params
    assert isinstance(product, Dropping) and product.first.weight.shape == (5, 4)
    block = hessian(network, params, (X, Y), layers="last")
    assert block.shape == (18, 18)


@jax.numpy_dtype_promotion("standard")  # Haiku's moving averages count in integers
def test_a_haiku_function():
    def forward(x, is_training):
        x = jnp.tanh(hk.Linear(5, name="first")(x))
        x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training)
        return hk.Linear(3, name="last")(x)

    transformed = hk.transform_with_state(forward)
    params, state = transformed.init(jax.random.key(0), X, True)
    variables = {"params": params, "state": state}

    def apply(params, state, rng, x, is_training):
        return transformed.apply(params, state, rng, x, is_training)

    network = from_function(apply, output=0)
    for mode in (EVAL, TRAIN):

        def loss(params, train=mode.train):
            out, _ = transformed.apply(params, state, None, X, train)
            return cross_entropy(out, (X, Y))

        flat, unravel = ravel_pytree(params)
        full = jax.hessian(lambda flat, loss=loss, unravel=unravel: loss(unravel(flat)))(flat)
        found = top_eigenvalues(network, variables, (X, Y), 3, mode=mode, which="largest")
        wanted = np.linalg.eigvalsh(full)[::-1][:3]
        np.testing.assert_allclose(found.values, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_function(3), "function is 'int'; allowed: a function"),
        (lambda: from_function(lambda: 0), r"<lambda>\(\).*allowed: a function of \(parameters"),
        (lambda: trace(positional, W, (X, Y)), r"from_function\(function\)"),
        (lambda: trace(from_function(positional), {"w": jnp.arange(3)}, (X, Y)), "cannot take"),
        (
            lambda: hessian(from_function(lambda p, x: x @ p[0]), (W, jnp.arange(3)), (X, Y)),
            "parameter '1' is 'int32'; allowed: real or complex floats",
        ),
        (lambda: outputs(from_function(keyword), W, {"a": X, "b": X}), "arguments, which are x"),
        (
            lambda: outputs(from_function(moded), W, {"a": X, "b": X}),
            r"arguments, which are x; or \(inputs, labels\)",
        ),
        (
            lambda: trace(from_function(moded), W, ((X, X), Y)),
            "batch has 2 inputs; allowed for moded: 1, x",
        ),
        (lambda: trace(from_function(two), W, {"a": X, "label": Y}), "argument: 'b'"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
