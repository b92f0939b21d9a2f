"""Random streams of any name, and labels outside the classes, in every instrument."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import (
    cross_entropy,
    first_nonfinite_layer,
    gradient_line,
    gradient_subspace_overlap,
    hessian_trace,
    hvp,
    kernel_drift,
    kernel_order,
    lesions,
    linear_interpolation,
    linearised,
    linearised_training,
    loss_contributions,
    loss_line,
    loss_plane,
    noise_scale,
    ntk,
    path_gradient,
    path_lengths,
    per_example_gradients,
    random_direction,
    shattering,
    signal_propagation,
    spectral_density,
    taps,
    top_eigenvalues,
    trace,
)
from deepjax.analysis.core.mode import EVAL
from deepjax.analysis.network.module import apply_module, mode_text
from deepjax.errors import InputError
from tests.analysis.network.network_cases import CLASSES, FEATURES, Sum, X, Y, params_only


class Sampled(nn.Module):
    """Draws from two streams in evaluation, adds a residual branch, and sows a head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, name="first")(x)
        x = x + 0.1 * jax.random.normal(self.make_rng("sample"), x.shape)
        x = Sum(name="sum")(x, nn.Dense(6)(nn.Dropout(0.5, deterministic=not train)(nn.tanh(x))))
        x = x * jax.random.uniform(self.make_rng("gate"), x.shape, minval=0.9)
        self.sow("auxiliary", "low", nn.Dense(CLASSES)(x))
        return nn.Dense(CLASSES)(x)


def stream_key_of(name: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(0), zlib.crc32(name.encode()))


def direction_of(v: Any, seed: int) -> Any:
    return random_direction(v, jax.random.key(seed))


# Every instrument on a batch with labels, of (network, variables, batch), and on inputs alone.
LABELLED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "trace": lambda m, v, b: trace(m, v, b, mode=EVAL),
    "taps": lambda m, v, b: taps(m, v, b, ["first"]),
    "hvp": lambda m, v, b: hvp(m, v, b, v["params"]),
    "hessian_trace": lambda m, v, b: hessian_trace(m, v, b, probes=1),
    "top_eigenvalues": lambda m, v, b: top_eigenvalues(m, v, b, k=1, steps=2),
    "gradient_subspace_overlap": lambda m, v, b: gradient_subspace_overlap(m, v, b, k=1, steps=2),
    "spectral_density": lambda m, v, b: spectral_density(m, v, b, steps=2, probes=1),
    "per_example_gradients": lambda m, v, b: per_example_gradients(m, v, b),
    "noise_scale": lambda m, v, b: noise_scale(m, v, b, small=4),
    "loss_line": lambda m, v, b: loss_line(m, v, b, direction_of(v, 0), alphas=[0, 1]),
    "linear_interpolation": lambda m, v, b: linear_interpolation(m, v, v, b, alphas=[0, 1]),
    "loss_plane": lambda m, v, b: loss_plane(
        m, v, b, direction_of(v, 0), direction_of(v, 1), grid=([-1, 0, 1], [-1, 0, 1])
    ),
    "loss_contributions": lambda m, v, b: loss_contributions(m, v, b),
    "lesions": lambda m, v, b: lesions(m, v, b),
    "lesions, metric": lambda m, v, b: lesions(
        m, v, b, loss=lambda outputs, batch: jnp.sum(outputs)
    ),
    "path_lengths": lambda m, v, b: path_lengths(m, v, b),
    "path_gradient": lambda m, v, b: path_gradient(m, v, b, ["sum"]),
    "linearised_training": lambda m, v, b: linearised_training(m, v, b, steps=1, learning_rate=0.1),
}


OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "ntk": lambda m, v: ntk(m, v, X),
    "kernel_drift": lambda m, v: kernel_drift(m, v, v, X),
    "linearised": lambda m, v: linearised(m, v)(v["params"], X),
    "signal_propagation": lambda m, v: signal_propagation(m, v, X),
    "shattering": lambda m, v: shattering(m, v, X),
    "gradient_line": lambda m, v: gradient_line(m, v, X[0], X[1], 3),
    "first_nonfinite_layer": lambda m, v: first_nonfinite_layer(m, v, X),
    "kernel_order": lambda m, v: kernel_order(m, (FEATURES,)),
}


QUICK = (
    "taps",
    "hvp",
    "per_example_gradients",
    "linear_interpolation",
    "ntk",
    "shattering",
    "kernel_order",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in (*LABELLED, *OTHERS)
    ],
)
def test_random_streams_of_any_name_in_every_instrument(name):
    v = params_only(Sampled())
    LABELLED[name](Sampled(), v, (X, Y)) if name in LABELLED else OTHERS[name](Sampled(), v)


@pytest.mark.parametrize("train", [False, True])
def test_streams_that_are_not_given_start_from_key_0_by_name(train):
    v, given = params_only(Sampled()), {"gate": jax.random.key(7)}
    keys = {"sample": stream_key_of("sample"), "gate": stream_key_of("gate")} | (
        {"dropout": jax.random.key(0)} if train else {}
    )
    by_hand = partial(Sampled().apply, v, X, train=train)
    np.testing.assert_array_equal(
        apply_module(Sampled(), v, (X, None), train)[0], by_hand(rngs=keys)
    )
    np.testing.assert_array_equal(
        apply_module(Sampled(), v, (X, None), train, given)[0], by_hand(rngs=keys | given)
    )
    drawing = "; draws from the random stream 'sample', 'gate' in evaluation"
    mode = "training mode (train=True)" if train else "evaluation mode (train=False)" + drawing
    assert mode_text(Sampled(), v, (X, None), train) == mode


def test_a_key_gives_other_streams():
    v = params_only(Sampled())
    keys = (jax.random.key(0), jax.random.key(1), None)
    first, second, default = (apply_module(Sampled(), v, (X, None), False, key)[0] for key in keys)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, default)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_outside_the_classes_are_refused(name, label):
    wrong = Y.at[2].set(label)
    message = (
        rf"1 of 8 labels are outside the classes \({label}\); allowed: 0 to 2, for the 3 outputs"
    )
    with pytest.raises(InputError, match=message):
        LABELLED[name](Sampled(), params_only(Sampled()), (X, wrong))


def test_labels_outside_the_classes_are_nan_inside_jit_and_refused_in_any_batch_of_a_list():
    v = params_only(Sampled())
    for label in (-1, CLASSES):
        wrong = Y.at[2].set(label)
        value, gradient = jax.jit(
            jax.value_and_grad(lambda logits, wrong=wrong: cross_entropy(logits, (X, wrong)))
        )(X[:, :CLASSES])
        assert np.isnan(value) and np.isnan(gradient).any()
        with pytest.raises(InputError, match="1 of 16 labels"):
            hessian_trace(Sampled(), v, [(X, Y), (X, wrong)], probes=1)
