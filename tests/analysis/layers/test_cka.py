"""CKA against the papers' formulas, computed with NumPy from captured outputs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import EVAL, TRAIN, Ghost
from deepjax.analysis.layers.cka import cka
from deepjax.errors import InputError
from tests.analysis.three_forms import (
    BATCHES,
    CNN,
    CNN_VARIABLES,
    FORMS,
    FUNCTION,
    IMAGES,
    LINEN,
    PAIRS,
    VARIABLES,
    X,
    Y,
)
from tests.zoo import AxisNorm, JittedBlocks, Recursive, Sharing, batch_of, variables_of


def captured(model, variables, inputs, **mode):
    """The outputs of the modules, by path, as (examples, features) in float64."""
    kept = model.apply(variables, inputs, **mode, capture_intermediates=True, mutable=True)[1]
    flat, _ = jax.tree_util.tree_flatten_with_path(kept["intermediates"])
    names = ["/".join(key.key for key in path[:-2]) or "(network)" for path, _ in flat]
    return {
        name: np.asarray(leaf, float).reshape(len(leaf), -1)
        for name, (_, leaf) in zip(names, flat, strict=True)
    }


def linear_cka(x, y):
    """||Y^T X||^2 / (||X^T X|| ||Y^T Y||) of centred features: Kornblith et al., section 3."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


def unbiased_hsic(x, y):
    """Nguyen et al. 2021, equation 3, term by term."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    total = np.trace(k @ m)
    total += (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (one @ k @ m @ one)
    return total / (n * (n - 3))


def minibatch_cka(xs, ys):
    means = [np.mean(list(map(unbiased_hsic, *each))) for each in ((xs, ys), (xs, xs), (ys, ys))]
    return means[0] / np.sqrt(means[1] * means[2])


def same(found, wanted):
    """wanted: CKA of two names."""
    for (i, a), (j, b) in itertools.product(enumerate(found.layers), enumerate(found.other_layers)):
        assert found.similarity[i, j] == pytest.approx(wanted(a, b), rel=1e-4, abs=1e-5), (a, b)


def test_the_layers_of_a_network_in_both_modes():
    for mode in (EVAL, TRAIN):
        outputs = captured(CNN, CNN_VARIABLES, IMAGES, train=mode.train)
        found = cka(CNN, CNN_VARIABLES, IMAGES, mode=mode)
        assert found.layers == ("conv1", "norm", "conv2", "head", "(network)")
        assert not found.unbiased and not found.is_other
        same(found, lambda a, b, of=outputs: linear_cka(of[a], of[b]))


def test_two_networks_on_minibatches():
    wide = nn.Sequential([nn.Dense(30), jnp.tanh, nn.Dense(3)])
    variables = wide.init(jax.random.key(5), X)
    parts = [X, jax.random.normal(jax.random.key(6), X.shape), X + 1]
    done = []
    found = cka(
        LINEN,
        VARIABLES,
        [(part, Y) for part in parts],
        other=(wide, variables),
        progress=lambda *each: done.append(each),
    )
    ours = [captured(LINEN, VARIABLES, part) for part in parts]
    theirs = [captured(wide, variables, part) for part in parts]
    assert found.other_layers == ("layers_0", "layers_2", "(network)")
    assert found.unbiased and found.is_other and done == [(1, 3), (2, 3), (3, 3)]
    same(
        found,
        lambda a, b: minibatch_cka([each[a] for each in ours], [each[b] for each in theirs]),
    )


def test_all_small_batches_together_are_the_whole():
    """The unbiased HSIC is a U-statistic: its mean over all subsets is that of all examples."""
    x = np.asarray(X[:6])
    subsets = [(x[list(rows)],) for rows in itertools.combinations(range(6), 4)]
    small = cka(LINEN, VARIABLES, subsets)
    whole = cka(LINEN, VARIABLES, x, unbiased=True)
    np.testing.assert_allclose(small.similarity, whole.similarity, rtol=1e-4)
    biased = cka(LINEN, VARIABLES, x)
    assert not np.allclose(biased.similarity, whole.similarity, rtol=0.05)


def test_ghost_batches_are_batches():
    ghosts = cka(CNN, CNN_VARIABLES, (IMAGES, Y), mode=Ghost(4))
    parts = [(IMAGES[at : at + 4], Y[at : at + 4]) for at in (0, 4)]
    lists = cka(CNN, CNN_VARIABLES, parts, mode=TRAIN)
    assert ghosts.unbiased
    np.testing.assert_allclose(ghosts.similarity, lists.similarity, rtol=1e-4)


class Rotated(nn.Module):
    """x, x rotated and scaled, x shifted, x stretched along one axis."""

    @nn.compact
    def __call__(self, x):
        for name in ("same", "rotated", "shifted", "stretched"):
            nn.Dense(5, name=name)(x)
        return x


def test_rotations_scales_and_shifts_change_nothing():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    kernels = {
        "same": np.eye(5),
        "rotated": 7 * rotation,
        "shifted": np.eye(5),
        "stretched": np.diag([100.0, 1, 1, 1, 1]),
    }
    params = {
        name: {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(5)}
        for name, kernel in kernels.items()
    }
    params["shifted"]["bias"] = jnp.full(5, 1000.0)
    for unbiased in (False, True):
        found = cka(Rotated(), {"params": params}, X, unbiased=unbiased)
        table = dict(zip(found.layers, found.similarity[0], strict=True))
        assert table["rotated"] == pytest.approx(1, abs=1e-5)
        assert table["shifted"] == pytest.approx(1, abs=1e-4)
        assert table["stretched"] < 0.9


@pytest.mark.parametrize("batch", BATCHES)
def test_linen_and_nnx_on_any_batch(batch):
    linen, nnx = (cka(*FORMS[name], BATCHES[batch]) for name in ("linen", "nnx"))
    assert nnx.layers == ("first", "head", "(network)")
    np.testing.assert_allclose(linen.similarity, nnx.similarity, rtol=1e-5)
    twins = cka(*FORMS["linen"], BATCHES[batch], other=FORMS["nnx"])
    np.testing.assert_allclose(twins.similarity, nnx.similarity, rtol=1e-5)


def test_chosen_layers():
    found = cka(CNN, CNN_VARIABLES, IMAGES, layers=("conv*", "head"), other_layers="(network)")
    assert found.layers == ("conv1", "conv2", "head")
    assert found.similarity[2] == pytest.approx([1], abs=1e-5)
    whole = cka(CNN, CNN_VARIABLES, IMAGES)
    np.testing.assert_allclose(found.similarity[:, 0], whole.similarity[[0, 2, 3], 4], rtol=1e-5)


class Constant(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x) + nn.Dense(3, name="constant")(jnp.ones_like(x))


def test_a_layer_that_is_the_same_for_all_examples_has_no_cka():
    found = cka(Constant(), Constant().init(jax.random.key(0), X), X)
    row = found.layers.index("constant")
    assert np.isnan(found.similarity[row]).all()
    assert found.rows()[row]["CKA"] is None
    assert np.isfinite(found.summary()["mean CKA"])


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(5, name="dense")(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        body = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = body(name="blocks")(nn.Dense(5, name="stem")(x), None)
        return nn.Dense(3, name="head")(x.sum(0))  # without the axis of the examples


def test_layers_that_cannot_be_read_are_named():
    variables = Scanned().init(jax.random.key(0), X)
    found = cka(Scanned(), variables, X)
    assert found.layers == ("stem",)
    reasons = dict(line.split(": ") for line in found.skipped_layers)
    assert "nn.scan" in reasons["blocks/dense"]
    assert reasons["head"] == reasons["(network)"] == "of shape (3,), not (examples, ...)"
    assert found.summary() == {"layers": 1} and found.plot().get_title(loc="left")
    with pytest.raises(InputError, match="layers has 'blocks/dense', which cannot be read: it is"):
        cka(Scanned(), variables, X, layers="blocks/dense")


def test_calls_of_shared_modules_are_told_apart():
    variables = variables_of(Recursive())
    found = cka(Recursive(), variables, batch_of()[0])
    calls = ("", " (2)", " (3)")
    assert found.layers == tuple(
        f"{each}{call}" for each in ("layer", "(network)") for call in calls
    )
    assert cka(Recursive(), variables, batch_of()[0], layers="layer").layers == found.layers[:3]
    shared = cka(Sharing(), variables_of(Sharing()), batch_of()[0])
    assert shared.layers == ("Dense_1", "Dense_0", "Dense_0 (2)", "(network)")


def test_named_axes_and_jitted_blocks():
    """An axis that is bound around the network; blocks of nn.jit, of which none can be read."""
    x, _ = batch_of(8)
    found = cka(AxisNorm(), variables_of(AxisNorm()), x, mode=TRAIN)
    assert found.layers == ("BatchNorm_0", "Dense_0", "(network)")
    x4 = X[:, :4]
    found = cka(JittedBlocks(), JittedBlocks().init(jax.random.key(0), x4), x4)
    assert found.layers == ("head", "(network)")
    assert {line.split(":")[0] for line in found.skipped_layers} >= {"b0", "b1", "b1/dense"}


def test_the_result():
    found = cka(CNN, CNN_VARIABLES, IMAGES)
    rows = found.rows()
    others = np.delete(found.similarity[1], 1)
    assert rows[1]["CKA"] == others.max() and rows[1]["mean CKA"] == pytest.approx(others.mean())
    assert rows[3]["most similar"] == "(network)"
    off = found.similarity[~np.eye(5, dtype=bool)]
    assert found.summary()["mean CKA"] == pytest.approx(off.mean())
    assert found.summary()["lowest"] == off.min()
    assert len(repr(found).splitlines()) == 7
    axes = found.plot(title="mine")
    assert axes.get_title(loc="left") == "mine"
    assert [each.get_text() for each in axes.get_yticklabels()] == list(found.layers)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cka(FUNCTION, PAIRS, X), "no layers; cka takes"),
        (lambda: cka(LINEN, VARIABLES, X, other=(FUNCTION, PAIRS)), "no layers; cka takes"),
        (lambda: cka(LINEN, VARIABLES, X, other=LINEN), "a pair"),
        (lambda: cka(LINEN, VARIABLES, X[:3], unbiased=True), "4 examples or more"),
        (lambda: cka(LINEN, VARIABLES, X[:1]), "2 examples or more"),
        (lambda: cka(LINEN, VARIABLES, X, layers="heat"), "did you mean 'head'"),
        (lambda: cka(LINEN, VARIABLES, X, train=True), "no longer takes train="),
    ],
)
def test_what_cannot_be_compared(call, message):
    with pytest.raises(InputError, match=message):
        call()
