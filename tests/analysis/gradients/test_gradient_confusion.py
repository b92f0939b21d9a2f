"""Gradient confusion against closed forms and gradients taken one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from deepjax.analysis import EVAL, TRAIN, Ghost, from_function
from deepjax.analysis.gradients.confusion import gradient_confusion
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


def gradients(at=None):
    """(gradients, parameters) of the single examples, or of slices of the batch."""

    def one(rows):
        def loss(params):
            logits = LINEN.apply({"params": params}, X[rows])
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(Y[rows])), Y[rows]])

        return ravel_pytree(jax.grad(loss)(VARIABLES["params"]))[0]

    slices = at or [slice(i, i + 1) for i in range(EXAMPLES)]
    return np.asarray(jnp.stack([one(rows) for rows in slices]), float)


def half_squares(outputs, batch):
    return 0.5 * jnp.mean(jnp.square(outputs - batch[1]))


def test_linear_regression_in_closed_form():
    """g_i = (w x_i - y_i) x_i."""

    def linear(w, x):
        return x @ w

    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    w, y = x[0] / 2, np.arange(6, dtype=np.float32)
    g = (x @ w - y)[:, None].astype(float) * x
    wanted = g @ g.T
    found = gradient_confusion(from_function(linear), w, (x, y), loss=half_squares)
    np.testing.assert_allclose(found.products, wanted, rtol=1e-5, atol=1e-5)
    off = wanted[np.triu_indices(6, 1)]
    assert found.eta == pytest.approx(-off.min(), rel=1e-5)
    norms = np.linalg.norm(g, axis=1)
    cosines = (wanted / np.outer(norms, norms))[np.triu_indices(6, 1)]
    summary = found.summary()
    assert summary["min cosine"] == pytest.approx(cosines.min(), rel=1e-5)
    assert summary["mean cosine"] == pytest.approx(cosines.mean(), rel=1e-4)
    assert summary["negative cosines"] == pytest.approx((cosines < 0).mean())


def test_no_confusion_where_gradients_agree():
    """Equal examples; and a gradient of 0 has no cosine."""

    def linear(w, x):
        return x @ w

    x = np.ones((3, 2), np.float32)
    same = gradient_confusion(
        from_function(linear), x[0], (x, np.zeros(3, np.float32)), loss=half_squares
    )
    assert same.eta == 0 and same.summary()["min cosine"] == pytest.approx(1)
    solved = gradient_confusion(
        from_function(linear), x[0], (x, np.full(3, 2, np.float32)), loss=half_squares
    )
    assert solved.summary() == {"eta": 0, "gradients": 3}
    assert np.isnan(solved.cosines).all()
    assert solved.plot().get_title(loc="left").startswith("All gradients are 0")


@pytest.mark.parametrize("chunk", [1, 3, 8, 50])
def test_the_chunks_change_nothing(chunk):
    done = []
    found = gradient_confusion(
        LINEN, VARIABLES, (X, Y), chunk=chunk, progress=lambda *each: done.append(each)
    )
    wanted = gradients() @ gradients().T
    np.testing.assert_allclose(found.products, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.products, found.products.T)
    blocks = -(-EXAMPLES // chunk)
    assert done[-1] == (blocks * (blocks + 1) // 2,) * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_form_of_network_and_batch(form, batch):
    found = gradient_confusion(*FORMS[form], BATCHES[batch])
    np.testing.assert_allclose(found.products, gradients() @ gradients().T, rtol=1e-4, atol=1e-6)


def test_the_gradients_of_some_layers():
    found = gradient_confusion(LINEN, VARIABLES, (X, Y), layers="head")
    head = gradients()[:, -15:]
    np.testing.assert_allclose(found.products, head @ head.T, rtol=1e-4, atol=1e-6)
    assert found.layers == ("head",)
    first = gradient_confusion(*FORMS["function"], (X, Y), layers="0")
    both = gradient_confusion(LINEN, VARIABLES, (X, Y))
    np.testing.assert_allclose(first.products + found.products, both.products, rtol=1e-4, atol=1e-6)


def test_batches_and_ghost_batches():
    rows = [slice(i, i + 2) for i in range(0, EXAMPLES, 2)]
    g = gradients(rows)
    lists = gradient_confusion(LINEN, VARIABLES, [(X[row], Y[row]) for row in rows], chunk=3)
    ghosts = gradient_confusion(LINEN, VARIABLES, (X, Y), mode=Ghost(2))
    for found in (lists, ghosts):
        np.testing.assert_allclose(found.products, g @ g.T, rtol=1e-4, atol=1e-6)
        assert found.examples_of_each == 2


def test_ghost_batches_have_statistics_of_their_own():
    labels = jnp.arange(EXAMPLES) % 3
    ghosts = gradient_confusion(CNN, CNN_VARIABLES, (IMAGES, labels), mode=Ghost(4))
    parts = [(IMAGES[at : at + 4], labels[at : at + 4]) for at in (0, 4)]
    lists = gradient_confusion(CNN, CNN_VARIABLES, parts, mode=TRAIN)
    frozen = gradient_confusion(CNN, CNN_VARIABLES, parts, mode=EVAL)
    np.testing.assert_allclose(ghosts.products, lists.products, rtol=1e-4)
    assert not np.allclose(lists.products, frozen.products, rtol=0.1)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def test_each_example_has_a_mask_of_its_own():
    """Equal examples have unequal gradients, the same ones for the same key."""
    x, y = jnp.ones((4, 40)), jnp.zeros(4, jnp.int32)
    variables = Dropped().init(jax.random.key(0), x)
    found = gradient_confusion(Dropped(), variables, (x, y), mode=TRAIN, key=jax.random.key(5))
    again = gradient_confusion(
        Dropped(), variables, (x, y), mode=TRAIN, key=jax.random.key(5), chunk=1
    )
    assert found.cosines.min() < 0.9
    np.testing.assert_allclose(found.products, again.products, rtol=1e-5)


def test_the_result():
    found = gradient_confusion(LINEN, VARIABLES, (X, Y))
    rows = found.rows()
    assert len(rows) == EXAMPLES
    row = rows[3]
    others = np.delete(found.cosines[3], 3)
    assert row["norm"] == pytest.approx(np.linalg.norm(gradients()[3]), rel=1e-5)
    assert row["mean cosine"] == pytest.approx(others.mean())
    assert found.cosines[3, row["most opposed"]] == row["min cosine"] == others.min()
    assert len(repr(found).splitlines()) == 2 + EXAMPLES
    assert found.plot(title="mine").get_title(loc="left") == "mine"
    assert "8 gradients of one example" in found.plot().get_title(loc="left")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_confusion(LINEN, VARIABLES, (X[:1], Y[:1])), "two or more"),
        (lambda: gradient_confusion(LINEN, VARIABLES, (X, Y), mode=Ghost(8)), "two or more"),
        (lambda: gradient_confusion(LINEN, VARIABLES, (X, Y), chunk=0), "chunk is 0"),
        (lambda: gradient_confusion(LINEN, VARIABLES, (X, Y), layers="heat"), "'head'"),
        (
            lambda: gradient_confusion(CNN, CNN_VARIABLES, (IMAGES, Y), mode=TRAIN),
            "no gradient of its own",
        ),
        (
            lambda: gradient_confusion(LINEN, VARIABLES, (X, Y), train=True),
            "no longer takes train=",
        ),
    ],
)
def test_what_cannot_be_computed(call, message):
    with pytest.raises(InputError, match=message):
        call()
