"""Networks with several inputs or outputs, boxed and complex parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import (
    Network,
    cka,
    first_nonfinite_layer,
    from_function,
    gradient_line,
    half_mse,
    hessian_trace,
    init_variables,
    linear_interpolation,
    ntk,
    per_example_gradients,
    shattering,
    trace,
)
from deepjax.analysis.core.mode import EVAL, TRAIN
from deepjax.analysis.network.module import apply_module, initialise
from deepjax.errors import InputError
from tests.analysis.network.network_cases import CLASSES, EXAMPLES, ByField, X, Y, loss_of_logits


class Pair(NamedTuple):
    logits: Any
    loss: Any


class Several(nn.Module):
    form: Callable[[Any, Any], Any]

    @nn.compact
    def __call__(self, x):
        return self.form(nn.Dense(4)(x), nn.Dense(CLASSES, name="head")(x))


FORMS = [
    (lambda a, b: (a, b), 1),
    (lambda a, b: {"mean": a, "logits": b}, "logits"),
    (lambda a, b: Pair(b, a), "logits"),
    (lambda a, b: {"all": [a, (b,)]}, ("all", 1, 0)),
    (lambda a, b: {"all": [a, (b,)]}, lambda outputs: outputs["all"][1][0]),
]


@pytest.mark.parametrize(("form", "output"), FORMS)
def test_output_selects_one_array(form, output):
    several = Several(form)
    v = initialise(several, X)
    kernel = v["params"]["head"]["kernel"]
    expected = loss_of_logits(jnp.dot(X, kernel) + v["params"]["head"]["bias"][None])
    network = Network(several, output=output)
    assert trace(network, v, (X, Y), mode=EVAL).loss == pytest.approx(float(expected), rel=1e-6)
    # The kernel of a linear map: x . x', and 1 for the bias.
    np.testing.assert_allclose(ntk(network, v, X).matrix, X @ X.T + 1, rtol=1e-5)
    with pytest.raises(InputError, match=r"returns a .*output="):
        trace(several, v, (X, Y), mode=EVAL)
    with pytest.raises(InputError, match=r"choose by Network\(..., output=\)"):
        ntk(several, v, X)
    with pytest.raises(InputError, match="output is 'nothing'; Several returns"):
        trace(Network(several, output="nothing"), v, (X, Y), mode=EVAL)


class Keyed(nn.Module):
    @nn.compact
    def __call__(self, x, key, scale, train=False):
        x = nn.Dense(16, name="first")(x) * scale
        return nn.Dense(CLASSES)(nn.tanh(x + jax.random.normal(key, (1, 16))))


def test_scalars_among_the_inputs_belong_to_all_examples():
    key, scale = jax.random.key(3), jnp.float32(0.7)
    v = Keyed().init(jax.random.key(0), X, key, scale)
    batch = ((X, key, scale), Y)

    def outputs(params: Any) -> Any:
        return Keyed().apply({"params": params}, X, key, scale)

    jacobian = jax.tree.leaves(jax.jacrev(outputs)(v["params"]))
    flat = jnp.concatenate([leaf.reshape(EXAMPLES, CLASSES, -1) for leaf in jacobian], axis=-1)
    np.testing.assert_allclose(
        ntk(Keyed(), v, batch, output="trace", chunk=3).matrix,
        jnp.einsum("iap,jap->ij", flat, flat),
        rtol=1e-4,
    )
    gradient = jax.grad(lambda params: loss_of_logits(outputs(params)))(v["params"])["first"]
    norm = float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))))
    first = next(
        row for row in per_example_gradients(Keyed(), v, batch).layers if row.layer == "first"
    )
    assert first.mean_norm == pytest.approx(norm, rel=1e-5)
    value = linear_interpolation(Keyed(), v, v, [batch, batch], alphas=[0, 1]).loss
    np.testing.assert_allclose(value, loss_of_logits(outputs(v["params"])), rtol=1e-5)


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x, z, train):
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(4, name="first")(x * z)))


def test_first_not_finite_of_several_inputs_and_under_vmap():
    v = initialise(TwoInputs(), (X, X))
    assert first_nonfinite_layer(TwoInputs(), v, ((X, X), None)) is None
    assert first_nonfinite_layer(TwoInputs(), v, ((X, X / 0), None)) == "first"

    each = nn.vmap(
        ByField, variable_axes={"params": None}, split_rngs={"params": False, "dropout": True}
    )(False)
    assert first_nonfinite_layer(each, initialise(each, X), X) is None
    assert first_nonfinite_layer(each, initialise(each, X), X / 0) == ""


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask, train):
        return nn.Dense(CLASSES)(jnp.mean(nn.Embed(7, 4)(tokens) * mask[..., None], axis=1))


def test_initialisation_of_tokens_and_several_inputs():
    shapes = (jax.ShapeDtypeStruct((2, 6), jnp.int32), jax.ShapeDtypeStruct((2, 6), jnp.float32))
    found = init_variables(Tokens(), jax.random.key(4), shapes)
    keys = {"params": jax.random.key(4), "dropout": jax.random.key(4)}
    expected = Tokens().init(keys, jnp.zeros((2, 6), jnp.int32), jnp.zeros((2, 6)), False)
    jax.tree.map(np.testing.assert_allclose, found, dict(expected))
    with pytest.raises(InputError, match=r"Tokens cannot take inputs float32\[2, 6\]: .*'mask'"):
        init_variables(Tokens(), jax.random.key(4), (2, 6))
    with pytest.raises(
        InputError,
        match=r"Embed cannot take inputs float32\[2, 6\]: .*integer; for other dtypes give a jax",
    ):
        init_variables(nn.Embed(7, 4), jax.random.key(4), (2, 6))


class Named(nn.Module):
    """Inputs with the names of labels."""

    @nn.compact
    def __call__(self, inputs, targets, *, train):
        return nn.Dense(CLASSES, use_bias=False)(inputs - targets * (2 if train else 1))


class Moded(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(CLASSES, use_bias=False)(x) * (2 if train else 1)


class Conditional(nn.Module):
    @nn.compact
    def __call__(self, x, label):
        return nn.Dense(CLASSES, use_bias=False)(x) + nn.Embed(CLASSES, CLASSES)(label)


TOKENS, MASK = jnp.arange(16).reshape(8, 2) % 7, jnp.ones((8, 2))


@pytest.mark.parametrize(
    ("model", "batch", "arguments"),
    [
        (Moded(), {"x": X, "label": Y}, (X, False)),
        (Moded(), {"anything": X, "label": Y}, (X, False)),
        (Tokens(), {"tokens": TOKENS, "mask": MASK, "label": Y}, (TOKENS, MASK, False)),
        (Named(), {"inputs": X, "targets": 3 * X, "label": Y}, (X, 3 * X)),
        (Conditional(), {"x": X, "label": Y}, (X, Y)),
        (Conditional(), {"anything": X, "label": Y}, (X, Y)),
    ],
)
def test_batches_by_the_names_of_the_arguments(model, batch, arguments):
    named = {"train": False} if isinstance(model, Named) else {}
    v = model.init(jax.random.key(0), *arguments, **named)
    wanted = model.apply(v, *arguments, **named)
    np.testing.assert_allclose(apply_module(model, v, batch, False)[0], wanted, rtol=1e-6)
    assert trace(model, v, batch, mode=EVAL).loss == pytest.approx(
        float(loss_of_logits(wanted)), rel=1e-5
    )


def test_arguments_that_are_missing_are_named_without_modes():
    v = Tokens().init(jax.random.key(0), TOKENS, MASK, False)
    with pytest.raises(InputError, match="arguments, which are tokens, mask; or"):
        trace(Tokens(), v, {"tokens": TOKENS, "label": Y}, mode=EVAL)


def test_a_line_between_inputs_by_name():
    """The derivative of sum(x * y) along the line, at its points."""
    network = from_function(lambda w, x, y: w * x * y)
    start, end = ({"x": jnp.full(1, a), "y": jnp.full(1, b)} for a, b in ((0.0, 1.0), (3.0, 5.0)))
    t = np.linspace(0, 1, 5)
    found = gradient_line(network, jnp.ones(()), start, end, 5, mode=EVAL)
    np.testing.assert_allclose(found.gradient, (3 * (1 + 4 * t) + 4 * 3 * t) / 5, rtol=1e-5)


BOTH = [X, 2 * X]


@pytest.mark.parametrize("mode", [EVAL, TRAIN], ids=repr)
def test_a_list_of_inputs_is_a_list_of_batches(mode):
    v = initialise(Moded(), X)
    pairs = [(each, None) for each in BOTH]
    np.testing.assert_array_equal(ntk(Moded(), v, BOTH, mode=mode).matrix.shape, (16, 16))
    for instrument in (ntk, cka, shattering):
        found, wanted = (
            instrument(Moded(), v, each, mode=mode).summary() for each in (BOTH, pairs)
        )
        assert found == pytest.approx(wanted, nan_ok=True)
    assert first_nonfinite_layer(Moded(), v, [X, X / 0]) == "Dense_0"


def test_a_list_of_inputs_and_labels_is_one_batch():
    network, w, labels = from_function(lambda w, x: x @ w), jnp.ones((5, 3)), jnp.ones((8, 3))
    for batch in ((X, labels), [X, labels]):
        found = trace(network, w, batch, loss=half_mse).loss
        assert found == pytest.approx(float(half_mse(X @ w, (X, labels))), rel=1e-5)


def of_second(outputs, batch):
    return jnp.mean(jnp.square(outputs - batch[1]))


@pytest.mark.parametrize(
    ("batch", "loss", "message"),
    [
        ([X, X], half_mse, r"no labels.*give inputs and labels as a tuple"),
        ([X, X], of_second, r"loss cannot take.*give inputs and labels as a tuple"),
        ([X, X[:2]], half_mse, "batches of one size"),
        ({"x": X, "label": Y, "file": "a.png"}, half_mse, r"batch\['file'\] is a str; allowed"),
        ([(X, np.array(["cat"] * 8))], half_mse, r"batch\[0\]\[1\] is a ndarray of <U3; allowed"),
        ((each for each in [(X, X)]), half_mse, r"batch is a generator.*give list\(batch\)"),
    ],
)
def test_what_is_no_batch(batch, loss, message):
    network = from_function(lambda w, x: x @ w)
    with pytest.raises(InputError, match=message) as error:
        hessian_trace(network, jnp.eye(5), batch, loss=loss, probes=1)
    assert "\n" not in str(error.value)


def test_a_list_of_inputs_where_one_batch_is_taken():
    with pytest.raises(InputError, match="batch is a list of 2 inputs"):
        apply_module(Moded(), initialise(Moded(), X), BOTH, False)


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(
            CLASSES, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "model"))
        )(x)


def test_boxes_are_opened():
    v = Partitioned().init(jax.random.key(0), X)
    assert isinstance(v["params"]["Dense_0"]["kernel"], nn.Partitioned)
    np.testing.assert_allclose(ntk(Partitioned(), v, X).matrix, X @ X.T + 1, rtol=1e-5)
    assert isinstance(initialise(Partitioned(), X)["params"]["Dense_0"]["kernel"], jax.Array)


class ComplexInside(nn.Module):
    """Returns no complex numbers."""

    @nn.compact
    def __call__(self, x):
        return (
            jnp.abs(
                nn.Dense(CLASSES, dtype=jnp.complex64, param_dtype=jnp.complex64, name="complex")(x)
            )
            > 0
        )


def test_complex_numbers_that_are_not_finite_are_seen():
    v = initialise(ComplexInside(), X)
    assert first_nonfinite_layer(ComplexInside(), v, X) is None
    assert (
        first_nonfinite_layer(ComplexInside(), jax.tree.map(lambda leaf: leaf * jnp.nan, v), X)
        == "complex"
    )
