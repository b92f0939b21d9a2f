"""The first layer whose output is not finite."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import first_nonfinite_layer, from_nnx
from tests.zoo import Weighted

X = jnp.ones((2, 3))


class CalledTwice(nn.Module):
    """One activation after each of two layers."""

    @nn.compact
    def __call__(self, x):
        act = nn.Dropout(0.5, deterministic=True, name="act")
        return act(nn.Dense(3, name="second")(act(nn.Dense(3, name="first")(x))))


class NnxCalledTwice(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.first, self.second = (nnx.Linear(3, 3, rngs=rngs) for _ in range(2))
        self.act = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        return self.act(self.second(self.act(self.first(x))))


@pytest.mark.parametrize("layer", ["first", "second"])
@pytest.mark.parametrize("form", ["linen", "nnx"])
def test_a_layer_that_is_called_again_does_not_count_before_those_in_between(form, layer):
    if form == "linen":
        model = CalledTwice()
        variables = model.init(jax.random.key(0), X)
    else:
        model, variables = from_nnx(NnxCalledTwice(nnx.Rngs(0)))
    assert first_nonfinite_layer(model, variables, X) is None
    variables["params"][layer]["bias"] = jnp.full(3, jnp.inf)
    assert first_nonfinite_layer(model, variables, X) == layer
    assert first_nonfinite_layer(model, variables, [(X, None), (X, None)]) == layer


def test_the_norm_of_a_layer_with_weight_norm_and_the_network_itself():
    variables = Weighted().init(jax.random.key(0), X)
    variables = jax.tree.map(lambda leaf: leaf * jnp.nan, variables)
    assert first_nonfinite_layer(Weighted(), variables, X) == "outer"

    class Divides(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x) / jnp.zeros(())

    variables = Divides().init(jax.random.key(0), X)
    assert first_nonfinite_layer(Divides(), variables, X) == ""


class Derivative(nn.Module):
    """A residual of a differential equation: it calls its layers inside jax.jvp too."""

    @nn.compact
    def __call__(self, x):
        first, second = nn.Dense(3, name="first"), nn.Dense(3, name="second")
        u = second(jnp.tanh(first(x)))
        return u, jax.jvp(lambda x: second(jnp.tanh(first(x))), (x,), (jnp.ones_like(x),))[1]


@pytest.mark.parametrize("layer", ["first", "second"])
def test_a_network_that_takes_derivatives_of_its_layers(layer):
    variables = Derivative().init(jax.random.key(0), X)
    assert first_nonfinite_layer(Derivative(), variables, X) is None
    variables["params"][layer]["bias"] = jnp.full(3, jnp.inf)
    assert first_nonfinite_layer(Derivative(), variables, X) == layer
