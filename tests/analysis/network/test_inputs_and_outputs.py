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
    first_nonfinite_layer,
    init_variables,
    linear_interpolation,
    ntk,
    per_example_gradients,
    trace,
)
from deepjax.analysis.core.mode import EVAL
from deepjax.analysis.network.module import initialise
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
