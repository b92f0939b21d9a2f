"""Instruments trace a network once, and refuse what does not fit in one line."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import (
    Network,
    cost,
    count_macs,
    count_params,
    first_nonfinite_layer,
    hessian_trace,
    lesions,
    linearised,
    ntk,
    shattering,
    taps,
    trace,
)
from deepjax.analysis.core.mode import EVAL
from deepjax.analysis.network.module import apply_module, initialise, mode_text
from deepjax.errors import InputError
from tests.analysis.network.network_cases import (
    CLASSES,
    FEATURES,
    Branching,
    ByField,
    ByFlag,
    X,
    Y,
    dropped_head,
    params_only,
)


class NoisyWhenLarge(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(CLASSES)(x)
        return (
            x + self.make_rng("noise").dtype.itemsize
            if len(x) > 4
            else x * (2.0 if self.has_rng("noise") else 1.0)
        )


def test_what_a_call_needs_does_not_depend_on_earlier_calls():
    """Expected: `apply` without the stream, of a batch in which the network draws nothing."""
    v = initialise(nn.Sequential([NoisyWhenLarge()]), X[:2])
    model = nn.Sequential([NoisyWhenLarge()])
    large, small = ((X, Y), (X[:2], Y[:2]))
    apply_module(model, v, large, False)
    np.testing.assert_array_equal(apply_module(model, v, small, False)[0], model.apply(v, X[:2]))
    assert (
        "'noise'" in mode_text(model, v, large, False)
        and "noise" not in trace(model, v, small, mode=EVAL).mode_text
    )

    decoder = nn.MultiHeadDotProductAttention(2, decode=True)
    full, token = decoder.init(jax.random.key(0), jnp.ones((1, 3, 4))), jnp.ones((1, 1, 4))
    for _ in range(2):
        with pytest.raises(InputError, match="cannot take a batch"):
            trace(decoder, {"params": full["params"]}, (token, None), mode=EVAL, loss=_summed)
        trace(decoder, full, (token, None), mode=EVAL, loss=_summed)


def _summed(outputs: Any, batch: Any) -> Any:
    return jnp.sum(outputs)


TRACES: list[str] = []


class Noting(nn.Module):
    @nn.compact
    def __call__(self, x, noisy=True):
        TRACES.append("")
        return dropped_head(x, not noisy)


def test_nothing_is_traced_again():
    """Equal networks, created again for each call, are one key of what is compiled."""
    v = initialise(Noting(), X)

    def look() -> None:
        for model in (Network(Noting(), eval_kwargs={"noisy": False}), Noting()):
            trace(model, v, (X, Y), mode=EVAL)
            hessian_trace(model, v, (X, Y), probes=1)
            shattering(model, v, X)
            lesions(model, v, (X, Y), layers=["Dropout_0"])

    look()
    before = len(TRACES)
    look()
    assert len(TRACES) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: Network(ByField), "model is a type; allowed: an instance of flax.linen.Module"),
        (
            lambda: jax.jit(lambda x: Network(ByFlag(), eval_kwargs={"mask": x}))(X),
            "is a traced array; allowed: fields that are known",
        ),
        (
            lambda: trace(ByFlag(), {"batch_stats": {}}, (X, Y)),
            "'params' is missing|allowed: a dict with 'params'",
        ),
        (
            lambda: trace(
                Network(ByFlag(), eval_kwargs={"nothing": 1}),
                params_only(ByFlag()),
                (X, Y),
                mode=EVAL,
            ),
            "unexpected keyword",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(given, message):
    with pytest.raises(InputError, match=message) as error:
        given()
    assert "\n" not in str(error.value)


class Jitting(nn.Module):
    """Layers under nn.jit, and a note of every trace."""

    @nn.compact
    def __call__(self, x):
        TRACES.append("")
        return nn.jit(nn.Dense)(CLASSES, name="head")(nn.jit(nn.Dense)(6, name="first")(x))


REPEATED: dict[str, Callable[[Any], Any]] = {
    "first_nonfinite_layer": lambda v: first_nonfinite_layer(Jitting(), v, X),
    "ntk": lambda v: ntk(Jitting(), v, X),
    "linearised": lambda v: linearised(Jitting(), v)(v["params"], X),
    "count_params": lambda v: count_params(Jitting(), (FEATURES,)),
    "count_macs": lambda v: count_macs(Jitting(), (FEATURES,)),
    "cost": lambda v: cost(Jitting(), (FEATURES,)),
    "trace": lambda v: trace(Jitting(), v, (X, Y), mode=EVAL),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_second_call_traces_nothing(name):
    """Each trace of a layer under nn.jit would stay in its cache."""
    v = initialise(Jitting(), X)
    REPEATED[name](v)
    before = len(TRACES)
    REPEATED[name](v)
    assert len(TRACES) == before > 0


def test_a_batch_that_is_a_list_is_one_batch():
    v = initialise(Branching(), X)
    one = trace(Branching(), v, (X, Y), mode=EVAL)
    assert trace(Branching(), v, [X, Y], mode=EVAL).loss == one.loss


def test_layers_of_several_batches_are_those_of_the_joined_batch():
    """In evaluation, where examples do not see each other."""
    v = initialise(Branching(), X)
    parts = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    several, joined = (trace(Branching(), v, batch, mode=EVAL) for batch in (parts, (X, Y)))
    assert several.loss == pytest.approx(joined.loss, rel=1e-6)
    for found, wanted in zip(several.layers, joined.layers, strict=True):
        assert found.runs == 2 * wanted.runs
        for name in ("mean", "std", "gradient_norm", "parameter_gradient_norm"):
            value = getattr(wanted, name)
            assert getattr(found, name) == (
                value if value is None else pytest.approx(value, rel=1e-4, abs=1e-7)
            )
    layer = next(row.layer for row in joined.layers if row.parameter_gradient_norm)
    taken, wanted = (
        taps(Branching(), v, each, layer, mode=EVAL)[layer] for each in (parts, (X, Y))
    )
    np.testing.assert_allclose(taken.activation, wanted.activation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(taken.gradient, wanted.gradient, rtol=1e-5, atol=1e-7)
