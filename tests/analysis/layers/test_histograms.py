"""Histograms against NumPy's on activations and gradients that were taken one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import EVAL, TRAIN, Ghost, taps
from deepjax.analysis.layers.histograms import histograms
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
from tests.zoo import Complex, Jitted, Unused, batch_of, variables_of

NAMES = ("conv1", "norm", "conv2", "head")


def same_counts(counts, values, bins=64):
    """np.histogram with the edges of the docstring."""
    values = np.asarray(values, float).ravel()
    edges = 2.0 ** np.arange(16 - bins, 17)
    edges[0], edges[-1] = 1e-300, np.inf
    for found, sign in ((counts.positive, 1), (counts.negative, -1)):
        finite = values[np.isfinite(values)]
        wanted = np.histogram(sign * finite[sign * finite > 0], edges)[0]
        np.testing.assert_array_equal(found, wanted)
    assert counts.zeros == (values == 0).sum()
    assert counts.non_finite == (~np.isfinite(values)).sum()
    assert counts.total == values.size


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_a_convolutional_network(mode):
    """The values of taps, whose own tests compare them with jax.grad."""
    found = histograms(CNN, CNN_VARIABLES, (IMAGES, Y), mode=mode)
    values = taps(CNN, CNN_VARIABLES, (IMAGES, Y), NAMES, mode=mode)
    assert [each.label for each in found.layers] == [*NAMES, "(network)"]
    for each in found.layers[:-1]:
        same_counts(each.activations, values[each.label].activation)
        same_counts(each.gradients, values[each.label].gradient)
        assert each.runs == 1 and each.shape == values[each.label].activation.shape


class Given(nn.Module):
    """Returns its inputs, and has a gradient of its own choice."""

    @nn.compact
    def __call__(self, x):
        Identity(name="same")(x)
        return Identity(name="used")(x) * self.param("one", nn.initializers.ones, ())


class Identity(nn.Module):
    def __call__(self, x):
        return x


def weighted(outputs, batch):
    return jnp.sum(jnp.where(batch[1] == 0, 0.0, outputs * batch[1]))


FINITE = (0.0, -0.0, 1.0, -1.0, 1.9999999, 2.0, 65504.0, 65536.0, -1e30, 2.0**-48, 2.0**-60)
EDGES = np.array([*FINITE, 3.0**-40, np.inf, -np.inf, np.nan], np.float32)


def test_the_edges_of_the_bins():
    """Powers of two belong to the bin above; the outermost bins have what lies beyond."""
    x, weights = EDGES[None], EDGES[None][:, ::-1].copy()
    found = histograms(Given(), {"params": {"one": jnp.ones(())}}, (x, weights), loss=weighted)
    (used,) = [each for each in found.layers if each.layer == "used"]
    same_counts(used.activations, EDGES)
    same_counts(used.gradients, weights)
    assert used.activations.positive[-1] == 2 and used.activations.positive[0] == 3
    assert used.activations.exponents[0] == -48 and used.activations.exponents[-1] == 15
    assert found.not_measured == ("same",)
    assert found.summary()["non-finite"] == pytest.approx(12 / (4 * EDGES.size))
    few = histograms(
        Given(), {"params": {"one": jnp.ones(())}}, (x, weights), loss=weighted, bins=4
    )
    same_counts(few.layers[0].activations, EDGES, bins=4)
    assert np.isnan(few.summary()["gradients below float16"])


def test_counts_of_batches_add_up():
    """The gradients are those of the mean loss: for three batches a third of each."""
    parts = [(IMAGES[at : at + 2], Y[at : at + 2]) for at in (0, 2, 4)]
    found = histograms(CNN, CNN_VARIABLES, parts)
    values = taps(CNN, CNN_VARIABLES, parts, NAMES)
    for each in found.layers[:-1]:
        same_counts(each.activations, values[each.label].activation)
        same_counts(each.gradients, values[each.label].gradient)
        assert each.runs == 3
    ghosts = histograms(CNN, CNN_VARIABLES, (IMAGES[:6], Y[:6]), mode=Ghost(2))
    for each, other in zip(found.layers, ghosts.layers, strict=True):
        np.testing.assert_array_equal(each.gradients.positive, other.gradients.positive)


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(5, name="dense")(x)), None


class Blocks(nn.Module):
    """Three equal layers, in a scan over rematerialised blocks or one by one."""

    scanned: bool

    @nn.compact
    def __call__(self, x):
        if self.scanned:
            body = nn.scan(
                nn.remat(Body), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = body(name="blocks")(x, None)
        else:
            for index in range(3):
                x, _ = Body(name=f"block{index}")(x, None)
        return nn.Dense(3, name="head")(x)


def test_the_runs_of_a_scanned_block_add_up():
    variables = Blocks(True).init(jax.random.key(0), X)
    stacked = variables["params"]["blocks"]["dense"]
    unrolled = {
        f"block{index}": {"dense": jax.tree.map(lambda leaf, i=index: leaf[i], stacked)}
        for index in range(3)
    }
    params = {"params": {"head": variables["params"]["head"], **unrolled}}
    values = taps(Blocks(False), params, (X, Y), [f"block{index}/dense" for index in range(3)])
    found = histograms(Blocks(True), variables, (X, Y), layers="blocks/dense").layers
    assert len(found) == 1 and found[0].runs == 3
    same_counts(found[0].activations, np.stack([each.activation for each in values.values()]))
    same_counts(found[0].gradients, np.stack([each.gradient for each in values.values()]))


@pytest.mark.parametrize("batch", BATCHES)
def test_linen_and_nnx_on_any_batch(batch):
    linen, nnx = (histograms(*FORMS[name], BATCHES[batch]) for name in ("linen", "nnx"))
    assert [each.label for each in nnx.layers] == ["first", "head", "(network)"]
    for each, other in zip(linen.layers, nnx.layers, strict=True):
        np.testing.assert_array_equal(each.gradients.negative, other.gradients.negative)
        np.testing.assert_array_equal(each.activations.positive, other.activations.positive)


def test_jitted_complex_and_unused_layers():
    for model in (Jitted(), Complex()):
        found = histograms(model, variables_of(model), batch_of())
        assert found.not_measured == ()
    complex_layer = found.layers[0]
    assert complex_layer.activations.total == 2 * np.prod(complex_layer.shape)
    unused = histograms(Unused(), variables_of(Unused()), batch_of())
    assert unused.not_measured == ("unused",)


def test_the_random_streams_start_from_the_key():
    model = nn.Sequential([nn.Dropout(0.5, deterministic=False), nn.Dense(3)])
    variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, X)
    keys = [jax.random.key(3), jax.random.key(3), jax.random.key(4)]
    counts = [
        histograms(model, variables, (X, Y), key=key).layers[0].activations.zeros for key in keys
    ]
    assert counts[0] == counts[1] != 0
    positives = [
        histograms(model, variables, (X, Y), key=key).layers[1].activations.positive for key in keys
    ]
    np.testing.assert_array_equal(positives[0], positives[1])
    assert not np.array_equal(positives[0], positives[2])


def test_the_result():
    found = histograms(CNN, CNN_VARIABLES, (IMAGES, Y))
    rows = found.rows()
    values = taps(CNN, CNN_VARIABLES, (IMAGES, Y), NAMES)["conv1"]
    sizes = np.abs(np.asarray(values.activation, float)).ravel()
    assert rows[0]["median |x|"] == pytest.approx(np.median(sizes), rel=0.1)
    assert rows[0]["negative"] == pytest.approx(float((values.activation < 0).mean()))
    sizes = np.abs(np.asarray(values.gradient, float)).ravel()
    small = ((sizes > 0) & (sizes < 2.0**-24)).mean()
    assert rows[0]["below float16"] == pytest.approx(small)
    assert rows[0]["zero gradients"] == pytest.approx((sizes == 0).mean())
    summary = found.summary()
    total = sum(each.activations.total for each in found.layers)
    zeros = sum(each.activations.zeros for each in found.layers)
    assert summary["zero activations"] == zeros / total and summary["layers"] == 5
    assert len(repr(found).splitlines()) == 7
    figure = found.plot(title="mine")
    assert figure.get_suptitle() == "mine"
    axes = figure.axes[0]
    assert found.plot(axes, title="gradients") is axes
    assert axes.get_title(loc="left") == "gradients"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: histograms(FUNCTION, PAIRS, (X, Y)), "no layers; histograms takes"),
        (lambda: histograms(LINEN, VARIABLES, (X, Y), bins=1), "bins is 1"),
        (lambda: histograms(LINEN, VARIABLES, (X, Y), layers="heat"), "did you mean 'head'"),
        (lambda: histograms(LINEN, VARIABLES, (X, Y), rngs={}), "no longer takes rngs="),
    ],
)
def test_what_has_no_histogram(call, message):
    with pytest.raises(InputError, match=message):
        call()
