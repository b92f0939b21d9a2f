"""Integrated gradients against closed forms, the axioms, and a sum in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import TRAIN, Ghost, from_function
from deepjax.analysis.attribution.integrated_gradients import integrated_gradients
from deepjax.errors import InputError
from tests.analysis.three_forms import (
    BATCHES,
    CNN,
    CNN_VARIABLES,
    EXAMPLES,
    FORMS,
    IMAGES,
    LINEN,
    VARIABLES,
    X,
    Y,
)

W = jax.random.normal(jax.random.key(9), (5, 3))


def linear(params, x):
    return x @ params


def quadratic(params, x):
    return jnp.einsum("ni,nj,ijc->nc", x, x, params)


def test_exact_for_linear_and_quadratic_networks_with_one_step():
    """With w: w (x - b); and for x A x the mean of the gradient is that at the middle."""
    found = integrated_gradients(from_function(linear), W, X, classes=1, steps=1, baseline=0.5)
    wanted = (np.asarray(X) - 0.5) * np.asarray(W)[:, 1]
    np.testing.assert_allclose(found.attribution, wanted, rtol=1e-5, atol=1e-6)
    a = np.asarray(jax.random.normal(jax.random.key(8), (5, 5, 3)))
    b = np.asarray(jax.random.normal(jax.random.key(7), (5,)))
    classes = np.arange(EXAMPLES) % 3
    found = integrated_gradients(
        from_function(quadratic), jnp.asarray(a), X, classes=classes, steps=1, baseline=b
    )
    middle, x = (np.asarray(X) + b) / 2, np.asarray(X)
    symmetric = (a + a.transpose(1, 0, 2))[:, :, classes]
    wanted = (x - b) * np.einsum("nj,ijn->ni", middle, symmetric)
    np.testing.assert_allclose(found.attribution, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(found.gaps).max() < 1e-4
    scores = np.einsum("ni,nj,ijn->n", x, x, a[:, :, classes])
    before = np.einsum("i,j,ijn->n", b, b, a[:, :, classes])
    np.testing.assert_allclose(found.differences, scores - before, rtol=1e-4, atol=1e-4)


def test_polynomials_are_exact_up_to_twice_the_steps():
    """The score x^6 has a gradient of degree 5: three points, not two."""

    def sixth(params, x):
        return params * jnp.sum(x**6, axis=1)

    gaps = [
        np.abs(
            integrated_gradients(from_function(sixth), jnp.ones(()), X, steps=steps).summary()[
                "relative gap"
            ]
        )
        for steps in (2, 3)
    ]
    assert gaps[0] > 1e-3 and gaps[1] < 1e-6


def test_the_gap_shrinks_with_the_steps():
    """A network of ReLUs, whose gradient jumps along the line, though not on one through 0."""
    gaps = [
        integrated_gradients(
            CNN, CNN_VARIABLES, IMAGES, steps=steps, baseline=IMAGES[::-1]
        ).summary()["relative gap"]
        for steps in (2, 16, 128)
    ]
    assert gaps[0] > 4 * gaps[1] > 16 * gaps[2] and gaps[2] < 0.01
    from_zero = integrated_gradients(CNN, CNN_VARIABLES, IMAGES, steps=1)
    assert from_zero.summary()["relative gap"] < 1e-5


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_the_chunks_change_nothing(chunk):
    done = []
    found = integrated_gradients(
        CNN, CNN_VARIABLES, IMAGES, steps=11, chunk=chunk, progress=lambda *each: done.append(each)
    )
    points, weights = np.polynomial.legendre.leggauss(11)
    classes = CNN.apply(CNN_VARIABLES, IMAGES).argmax(1)

    def score(images):
        return jnp.sum(CNN.apply(CNN_VARIABLES, images)[jnp.arange(EXAMPLES), classes])

    mean = sum(
        weight / 2 * jax.grad(score)(IMAGES * (point + 1) / 2)
        for point, weight in zip(points.tolist(), weights.tolist(), strict=True)
    )
    np.testing.assert_allclose(found.attribution, IMAGES * mean, rtol=1e-3, atol=1e-6)
    assert done[-1] == (-(-11 // chunk),) * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_form_of_network_and_batch(form, batch):
    found = integrated_gradients(*FORMS[form], BATCHES[batch])
    wanted = integrated_gradients(LINEN, VARIABLES, X)
    np.testing.assert_allclose(found.attribution, wanted.attribution, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.classes, LINEN.apply(VARIABLES, X).argmax(1))
    assert np.abs(found.gaps).max() < 1e-5


class Pair(nn.Module):
    """Two inputs of floats and one of integers; one score for each example."""

    @nn.compact
    def __call__(self, x, tokens, scale):
        hidden = nn.Dense(4)(x) + nn.Embed(10, 4)(tokens)
        return jnp.sum(jnp.tanh(hidden) * scale[:, None], axis=1)


def test_several_inputs():
    inputs = {"x": X, "tokens": jnp.arange(EXAMPLES), "scale": jnp.linspace(0.5, 2, EXAMPLES)}
    variables = Pair().init(jax.random.key(0), **inputs)
    found = integrated_gradients(Pair(), variables, inputs)
    shapes = {name: each.shape for name, each in found.attributions.items()}
    assert shapes == {"scale": (8,), "x": (8, 5)}
    with pytest.raises(InputError, match="there are scale, x"):
        found.attribution  # noqa: B018
    before = {**inputs, "x": jnp.zeros_like(X), "scale": jnp.zeros(EXAMPLES)}
    wanted = Pair().apply(variables, **inputs) - Pair().apply(variables, **before)
    np.testing.assert_allclose(found.differences, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.sums, wanted, rtol=1e-4, atol=1e-5)
    assert found.classes is None and found.rows()[0]["example"] == 0
    same = integrated_gradients(Pair(), variables, inputs, baseline={**inputs, "x": 0 * X})
    assert not same.attributions["scale"].any()
    np.testing.assert_allclose(same.sums, same.differences, rtol=1e-4, atol=1e-5)


def test_batches_and_ghost_batches():
    parts = [IMAGES[:4], IMAGES[4:]]
    whole = integrated_gradients(CNN, CNN_VARIABLES, IMAGES, steps=8)
    lists = integrated_gradients(CNN, CNN_VARIABLES, [(part,) for part in parts], steps=8)
    np.testing.assert_allclose(whole.attribution, lists.attribution, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(whole.gaps, lists.gaps, rtol=1e-3, atol=1e-5)
    ghosts = integrated_gradients(CNN, CNN_VARIABLES, IMAGES, steps=8, mode=Ghost(4))
    trained = integrated_gradients(
        CNN, CNN_VARIABLES, [(part,) for part in parts], steps=8, mode=TRAIN
    )
    np.testing.assert_allclose(ghosts.attribution, trained.attribution, rtol=1e-3, atol=1e-6)


def test_examples_that_share_statistics_are_complete_together():
    """One difference for each batch; from a baseline with a variance above 0."""
    before = 2 * IMAGES[::-1]

    def total(images):
        return CNN.apply(CNN_VARIABLES, images, train=True, mutable=True)[0][:, 0].sum()

    found = integrated_gradients(
        CNN, CNN_VARIABLES, IMAGES, mode=TRAIN, steps=100, classes=0, baseline=before
    )
    np.testing.assert_allclose(found.differences, [total(IMAGES) - total(before)], atol=1e-4)
    assert abs(found.gaps[0]) < 0.02 * np.abs(found.attribution).sum()
    (row,) = found.rows()
    assert row["batch"] == 0 and row["class"] is None


class Scored(nn.Module):
    """One score for each example, by the statistics of the batch."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x))[:, 0]


def test_rows_of_scores_without_classes_are_of_examples_or_batches():
    variables = Scored().init(jax.random.key(0), X)
    rows = integrated_gradients(Scored(), variables, X).rows()
    assert [row["example"] for row in rows] == list(range(EXAMPLES))
    rows = integrated_gradients(Scored(), variables, [(X,), (X,)], mode=TRAIN).rows()
    assert [row["batch"] for row in rows] == [0, 1]


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def test_the_mask_is_the_same_at_all_points():
    """A linear network with a mask stays complete."""
    variables = Dropped().init(jax.random.key(0), X)
    found = integrated_gradients(
        Dropped(), variables, X, mode=TRAIN, key=jax.random.key(1), classes=0
    )
    np.testing.assert_allclose(found.sums, found.differences, rtol=1e-4, atol=1e-5)
    assert 0.2 < (found.attribution == 0).mean() < 0.8


def test_the_result():
    found = integrated_gradients(CNN, CNN_VARIABLES, (IMAGES, Y), steps=8)
    rows, summary = found.rows(), found.summary()
    assert len(rows) == EXAMPLES
    assert rows[1]["gap"] == pytest.approx(rows[1]["sum"] - rows[1]["difference"])
    assert summary["largest gap"] == pytest.approx(max(abs(row["gap"]) for row in rows))
    assert summary["steps"] == 8
    assert len(repr(found).splitlines()) == 2 + EXAMPLES
    axes = found.plot(title="mine")
    assert axes.get_title(loc="left") == "mine" and len(axes.images) == 2 * EXAMPLES
    assert integrated_gradients(LINEN, VARIABLES, X).plot().get_xlabel() == "feature"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: integrated_gradients(LINEN, VARIABLES, X, steps=0), "steps is 0"),
        (lambda: integrated_gradients(LINEN, VARIABLES, X, classes=0.5), "an integer"),
        (lambda: integrated_gradients(LINEN, VARIABLES, X, baseline=jnp.ones(4)), "baseline is"),
        (
            lambda: integrated_gradients(
                nn.Embed(4, 3),
                nn.Embed(4, 3).init(jax.random.key(0), Y),
                Y,
            ),
            "no inputs of floats",
        ),
        (
            lambda: integrated_gradients(from_function(lambda w, x: x[:, None] * w.T[None]), W, X),
            r"array of shape \(8, 3, 5\)",
        ),
        (
            lambda: integrated_gradients(
                from_function(lambda w, x: (x @ w)[:, 0]), W, X, classes=0
            ),
            "no axis of classes",
        ),
    ],
)
def test_what_has_no_attribution(call, message):
    with pytest.raises(InputError, match=message):
        call()
