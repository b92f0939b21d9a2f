"""Networks with named axes, and with collections that change in evaluation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import (
    cross_entropy,
    ntk,
    per_example_gradients,
    signal_propagation,
    taps,
    trace,
)
from deepjax.analysis.core.mode import EVAL, TRAIN, Ghost
from deepjax.analysis.network.module import apply_module, initialise, loss_of, mode_text
from deepjax.errors import InputError
from tests.analysis.network.network_cases import CLASSES, FEATURES, Sum, X, Y, loss_of_logits


class Normed(nn.Module):
    axis: str | None

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis)(
            nn.Dense(6, name="first")(x)
        )
        return nn.Dense(CLASSES)(Sum(name="sum")(x, nn.Dense(6)(nn.relu(x))))


def _numbers(model: Any, v: Any) -> tuple[float, ...]:
    return (
        signal_propagation(model, v, X).blocks[0].variance,
        per_example_gradients(model, v, (X, Y), mode=Ghost(4)).layers[0].mean_norm,
        float(taps(model, v, (X, Y), ["sum"])["sum"].gradient.sum()),
    )


@pytest.mark.parametrize("axis", ["batch", "any other name. Even this"])
def test_an_axis_of_batch_norm_is_bound(axis):
    """Expected: the same network without an axis, over one device the same function."""
    bound, free = Normed(axis), Normed(None)
    v = initialise(bound, X)

    def value(model: Any, params: Any) -> Any:
        return loss_of(model, {**v, "params": params}, (X, Y), cross_entropy, True)

    ours, expected = (
        jax.value_and_grad(partial(value, model))(v["params"]) for model in (bound, free)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), ours, expected)
    assert f"axis '{axis}' bound with size 1" in mode_text(bound, v, (X, Y), True)


def test_layers_under_an_axis_of_batch_norm_are_seen():
    bound, free = Normed("batch"), Normed(None)
    v = initialise(bound, X)
    report, other = (trace(model, v, (X, Y)) for model in (bound, free))
    assert [row.layer for row in report.layers] == [row.layer for row in other.layers]
    assert [row.gradient_norm for row in report.layers] == pytest.approx(
        [row.gradient_norm for row in other.layers], rel=1e-5
    )
    pairs = [_numbers(model, v) for model in (bound, free)]
    assert pairs[0] == pytest.approx(pairs[1], rel=1e-4, abs=1e-6)


def test_a_bound_axis_stays_as_it_is():
    """Under pmap over two devices the outputs are those of the full batch on one device."""
    v = initialise(Normed("batch"), X)
    whole = apply_module(Normed(None), v, (X, None), True)[0]
    halves = jax.vmap(
        lambda x: apply_module(Normed("batch"), v, (x, None), True)[0], axis_name="batch"
    )(X.reshape(2, 4, FEATURES))
    np.testing.assert_allclose(halves.reshape(whole.shape), whole, rtol=1e-4, atol=1e-5)


def test_an_axis_that_was_bound_around_an_earlier_call_is_bound_again():
    model, free = Normed("earlier"), Normed(None)
    v = initialise(model, X)
    jax.vmap(lambda x: apply_module(model, v, (x, None), True)[0], axis_name="earlier")(
        jnp.stack([X, X])
    )
    np.testing.assert_allclose(
        apply_module(model, v, (X, None), True)[0],
        apply_module(free, v, (X, None), True)[0],
        rtol=1e-5,
    )


class AlwaysTrains(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=False)(x))


def test_evaluation_that_writes_batch_statistics_is_refused():
    v = initialise(AlwaysTrains(), X)
    with pytest.raises(
        InputError, match=r"evaluation writes the batch statistics.*Network\(module, eval_kwargs"
    ):
        per_example_gradients(AlwaysTrains(), v, (X, Y))
    assert np.isfinite(trace(AlwaysTrains(), v, (X, Y), mode=TRAIN).loss)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        count = self.variable("counts", "calls", lambda: jnp.zeros(()))
        count.value += 1
        return nn.Dense(CLASSES)(x) * count.value


def test_collections_that_evaluation_writes():
    v = initialise(Counting(), X)
    expected = loss_of_logits(Counting().apply(v, X, mutable=["counts"])[0])
    assert trace(Counting(), v, (X, Y), mode=EVAL).loss == pytest.approx(float(expected), rel=1e-6)
    assert mode_text(Counting(), v, (X, Y), False).endswith(
        "; writes the collection 'counts' in evaluation"
    )
    assert ntk(Counting(), v, X).mode_text == mode_text(Counting(), v, (X, Y), False)
