"""The matrices as linear operators, validated against matrices formed by jax.jacrev."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import eigsh

from deepjax.analysis import (
    EVAL,
    TRAIN,
    empirical_fisher,
    fisher,
    from_function,
    gauss_newton,
    gradient_covariance,
    hessian,
    noise_scale,
    top_eigenvalues,
)
from deepjax.errors import InputError


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(jnp.tanh(nn.Dense(4, name="first")(x)))


MODEL = Mlp()
INPUTS = jax.random.normal(jax.random.key(1), (9, 5))
LABELS = jnp.arange(9) % 3
VARIABLES = MODEL.init(jax.random.key(0), INPUTS)
FLAT, UNRAVEL = ravel_pytree(VARIABLES["params"])


def losses(flat):
    """(examples,) cross-entropies."""
    logits = MODEL.apply({"params": UNRAVEL(flat)}, INPUTS)
    return -jax.nn.log_softmax(logits)[jnp.arange(9), LABELS]


def gradients():
    return np.asarray(jax.jacrev(losses)(FLAT), float)


def exact_fisher():
    """The mean over examples and labels of p(y) g g^T."""

    def logs(flat):
        return jax.nn.log_softmax(MODEL.apply({"params": UNRAVEL(flat)}, INPUTS))

    jacobian, p = np.asarray(jax.jacrev(logs)(FLAT), float), np.exp(np.asarray(logs(FLAT), float))
    return np.einsum("ny,nya,nyb->ab", p, jacobian, jacobian) / 9


MATRICES = {
    hessian: lambda: np.asarray(jax.hessian(lambda flat: losses(flat).mean())(FLAT), float),
    gauss_newton: exact_fisher,  # equal for softmax cross-entropy (Martens 2020)
    fisher: exact_fisher,
    empirical_fisher: lambda: gradients().T @ gradients() / 9,
    gradient_covariance: lambda: np.cov(gradients().T),
}
each_matrix = pytest.mark.parametrize("make", MATRICES, ids=lambda make: make.__name__)


@each_matrix
def test_products_and_conversions(make):
    operator, wanted = make(MODEL, VARIABLES, (INPUTS, LABELS)), MATRICES[make]()
    assert operator.shape == wanted.shape and operator.dtype == np.float32
    np.testing.assert_allclose(operator.todense(), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(operator.T @ FLAT, wanted @ FLAT, rtol=1e-3, atol=1e-5)
    tree = operator @ VARIABLES["params"]
    np.testing.assert_allclose(ravel_pytree(tree)[0], operator @ FLAT, rtol=1e-6)
    columns = np.stack([FLAT, 2 * FLAT], axis=1)
    np.testing.assert_allclose(operator @ columns, wanted @ columns, rtol=1e-3, atol=1e-5)
    largest = eigsh(operator.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(largest), np.linalg.eigvalsh(wanted)[-2:], rtol=1e-4)
    assert len(repr(operator)) < 120


@each_matrix
def test_batches_and_layers(make):
    parts = [(INPUTS[:3], LABELS[:3]), (INPUTS[3:6], LABELS[3:6]), (INPUTS[6:], LABELS[6:])]
    operator = make(MODEL, VARIABLES, parts, layers="head")
    block = slice(FLAT.size - 15, FLAT.size)  # "first" comes before "head"
    wanted = MATRICES[make]()[block, block]
    np.testing.assert_allclose(operator.todense(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [empirical_fisher, gradient_covariance])
def test_exact_diagonals(make):
    operator = make(MODEL, VARIABLES, (INPUTS, LABELS))
    np.testing.assert_allclose(operator.diagonal(), np.diag(MATRICES[make]()), rtol=1e-4, atol=1e-7)


def test_the_estimated_diagonal_converges_as_its_variance_says():
    operator, probes = hessian(MODEL, VARIABLES, (INPUTS, LABELS)), 200
    wanted = MATRICES[hessian]()
    found = np.asarray(operator.diagonal(jax.random.key(3), probes=probes))
    variance = (np.square(wanted).sum(1) - np.square(np.diag(wanted))) / probes
    assert np.sum(np.square(found - np.diag(wanted))) < 2 * variance.sum()
    assert not np.array_equal(found, operator.diagonal(jax.random.key(4), probes=probes))


def test_a_sampled_fisher_matrix_has_the_exact_one_as_its_mean():
    sampled = fisher(MODEL, VARIABLES, (INPUTS, LABELS), samples=2000).todense()
    wanted = exact_fisher()
    assert np.linalg.norm(sampled - wanted) < 0.05 * np.linalg.norm(wanted)


def test_the_trace_of_the_covariance_is_that_of_the_noise_scale():
    batch = (INPUTS[:8], LABELS[:8])
    trace = float(gradient_covariance(MODEL, VARIABLES, batch).diagonal().sum())
    assert noise_scale(MODEL, VARIABLES, batch, small=1).trace_sigma == pytest.approx(
        trace, rel=1e-4
    )


def test_eigenvalues_of_the_other_matrices():
    found = top_eigenvalues(MODEL, VARIABLES, (INPUTS, LABELS), 3, operator="covariance")
    wanted = np.linalg.eigvalsh(MATRICES[gradient_covariance]())[::-1][:3]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-4)


def test_parameters_that_are_no_dict():
    """The layout of a function's own tree: a list of pairs."""

    def mlp(params, x):
        (w, b), (v, c) = params
        return jnp.tanh(x @ w + b[None]) @ v + c[None]

    p = VARIABLES["params"]
    params = [(p[name]["kernel"], p[name]["bias"]) for name in ("first", "head")]
    operator = hessian(from_function(mlp), params, (INPUTS, LABELS))
    wanted = hessian(MODEL, VARIABLES, (INPUTS, LABELS)) @ p
    found = operator @ params
    assert isinstance(found, list) and isinstance(found[0], tuple)
    np.testing.assert_allclose(found[1][0], wanted["head"]["kernel"], rtol=1e-5, atol=1e-7)
    first = hessian(from_function(mlp), params, (INPUTS, LABELS), layers="0")
    assert first.shape == (24, 24)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hessian(MODEL, VARIABLES, (INPUTS, LABELS)) @ np.ones(3),
            r"shape \(3,\)",
        ),
        (lambda: hessian(MODEL, VARIABLES, (INPUTS, LABELS)) @ {"head": 1.0}, "a tree"),
        (
            lambda: empirical_fisher(
                Normed(), Normed().init(jax.random.key(0), INPUTS), (INPUTS, LABELS), mode=TRAIN
            ),
            "no gradient of its own",
        ),
        (lambda: gradient_covariance(MODEL, VARIABLES, (INPUTS[:1], LABELS[:1])), "two examples"),
        (
            lambda: top_eigenvalues(
                MODEL,
                VARIABLES,
                (INPUTS, LABELS),
                operator="fisher",
                loss=lambda outputs, batch: jnp.mean(outputs),
                mode=EVAL,
            ),
            "cross_entropy, whose Fisher matrix is known",
        ),
    ],
)
def test_what_cannot_be_computed(call, message):
    with pytest.raises(InputError, match=message):
        call()


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(4)(x))))


def test_examples_have_dropout_of_their_own():
    variables, key = Noisy().init(jax.random.key(0), INPUTS), jax.random.key(5)
    flat, unravel = ravel_pytree(variables["params"])

    def loss(flat, index):
        given, own = {"params": unravel(flat)}, {"dropout": jax.random.fold_in(key, index)}
        logits = Noisy().apply(given, INPUTS[index][None], train=True, rngs=own)
        return -jax.nn.log_softmax(logits)[0, LABELS[index]]

    by_hand = jax.vmap(jax.grad(loss), (None, 0))(flat, jnp.arange(9))
    options = {"mode": TRAIN, "key": key}
    operator = gradient_covariance(Noisy(), variables, (INPUTS, LABELS), **options)
    wanted = np.cov(np.asarray(by_hand, float).T)
    np.testing.assert_allclose(operator.todense(), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(operator.diagonal(), np.diag(wanted), rtol=1e-4, atol=1e-6)


def test_labels_are_sampled_under_the_masks_of_their_gradients():
    """Validated against the mean of the exact matrix over masks, one per example."""
    variables = Noisy().init(jax.random.key(0), INPUTS)
    flat, unravel = ravel_pytree(variables["params"])

    def exact(index, key):
        def logs(flat):
            given, rngs = {"params": unravel(flat)}, {"dropout": key}
            logits = Noisy().apply(given, INPUTS[index][None], train=True, rngs=rngs)[0]
            return jax.nn.log_softmax(logits)

        squares = jnp.square(jax.jacrev(logs)(flat)).sum(1)
        return jnp.sum(jnp.exp(logs(flat)) * squares)

    keys = jax.random.split(jax.random.key(3), 2000)
    wanted = np.mean([jax.vmap(exact, (None, 0))(index, keys).mean() for index in range(9)])
    sampled = fisher(Noisy(), variables, (INPUTS, LABELS), mode=TRAIN, samples=500)
    assert float(sampled.diagonal().sum()) == pytest.approx(wanted, rel=0.1)


def test_a_covariance_does_not_cancel_where_the_mean_is_large():
    """Gradients x + noise of a linear function, with a signal of 300 times the noise."""

    def linear(params, x):
        return x @ params

    def mean_output(outputs, batch):
        return outputs.mean()

    x = 1.0 + jax.random.normal(jax.random.key(1), (8, 5)) / 300
    options = {"loss": mean_output, "layers": None}
    parts = [(x[:4], jnp.zeros(4)), (x[4:], jnp.zeros(4))]
    operator = gradient_covariance(from_function(linear), jnp.ones(5), parts, **options)
    wanted = np.cov(np.asarray(x, float).T)
    np.testing.assert_allclose(operator.todense(), wanted, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(operator.diagonal(), np.diag(wanted), rtol=1e-3)


def test_a_gauss_newton_matrix_with_an_integer_output():
    def apply(params, x):
        logits = x @ params
        return {"logits": logits, "predicted": logits.argmax(-1)}

    def loss(outputs, batch):
        weights = outputs["predicted"].astype(jnp.float32) + 1.0
        return jnp.mean(jnp.square(outputs["logits"]) * weights[:, None])

    params = jax.random.normal(jax.random.key(2), (5, 3))
    operator = gauss_newton(from_function(apply), params, (INPUTS, LABELS), loss=loss)
    wanted = hessian(from_function(apply), params, (INPUTS, LABELS), loss=loss).todense()
    np.testing.assert_allclose(operator.todense(), wanted, rtol=1e-4, atol=1e-6)
