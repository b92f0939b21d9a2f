"""Grad-CAM against CAM, its definition by jax.grad, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import EVAL, TRAIN, Ghost, Network, from_nnx
from deepjax.analysis.attribution.grad_cam import grad_cam
from deepjax.errors import InputError
from tests.analysis.three_forms import (
    CNN,
    CNN_VARIABLES,
    EXAMPLES,
    FUNCTION,
    IMAGES,
    LINEN,
    PAIRS,
    VARIABLES,
    X,
    Y,
)

HEAD = CNN_VARIABLES["params"]["head"]["kernel"]  # (4, 3)


def cnn_with(capture, images=IMAGES, **mode):
    """(logits, output of a layer)."""
    logits, kept = CNN.apply(
        CNN_VARIABLES, images, **mode, capture_intermediates=True, mutable=True
    )
    return logits, kept["intermediates"][capture]["__call__"][0]


class Relu(nn.Module):
    def __call__(self, x):
        return nn.relu(x)


class Pooled(nn.Module):
    """Ends in a layer, global average pooling and one dense layer, as CAM requires."""

    @nn.compact
    def __call__(self, x):
        x = Relu(name="act")(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def test_it_is_cam_behind_global_average_pooling():
    """Section 3.1: with places Z, the weight of a channel is w / Z."""
    variables = Pooled().init(jax.random.key(4), IMAGES)
    head = variables["params"]["head"]["kernel"]
    kept = Pooled().apply(variables, IMAGES, capture_intermediates=True, mutable=True)[1]
    features = kept["intermediates"]["act"]["__call__"][0]
    for label in range(3):
        cam = np.einsum("nhwc,c->nhw", features, head[:, label])
        found = grad_cam(Pooled(), variables, IMAGES, "act", classes=label)
        np.testing.assert_allclose(found.maps * 120, np.maximum(cam, 0), rtol=1e-4, atol=1e-5)
        assert (found.classes == label).all()


def test_the_definition_with_the_predicted_classes():
    """Equations 1 and 2 by jax.grad, through the layers behind the first."""

    def after(features, image):
        """The class scores as a function of conv1's output."""

        def replace(call, arguments, keywords, context):
            found = call(*arguments, **keywords)
            return features if context.module.path == ("conv1",) else found

        with nn.intercept_methods(replace):
            return CNN.apply(CNN_VARIABLES, image)

    found = grad_cam(CNN, CNN_VARIABLES, (IMAGES, Y), "conv1")
    logits, features = cnn_with("conv1")
    np.testing.assert_array_equal(found.classes, logits.argmax(1))
    np.testing.assert_allclose(found.scores, logits.max(1), rtol=1e-5)
    for i in range(EXAMPLES):
        gradient = jax.grad(lambda each, i=i: after(each, IMAGES[i : i + 1])[0].max())(
            features[i : i + 1]
        )
        weights = np.asarray(gradient).mean((0, 1, 2))
        wanted = np.maximum(np.asarray(features[i]) @ weights, 0)
        np.testing.assert_allclose(found.maps[i], wanted, rtol=1e-3, atol=1e-6)
    assert found.image_maps.shape == (8, 12, 10)
    np.testing.assert_allclose(found.image_maps, found.maps, rtol=1e-6)


def test_maps_are_interpolated_to_the_image():
    """Bilinear with pixel centres: between two centres the values are on a line."""
    found = grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv2")
    assert found.maps.shape == (8, 6, 5) and found.image_maps.shape == (8, 12, 10)
    small, large = found.maps, found.image_maps
    np.testing.assert_allclose(large[:, 0, 0], small[:, 0, 0], rtol=1e-5)
    wanted = 0.75 * small[:, 2, :1] + 0.25 * small[:, 3, :1]
    np.testing.assert_allclose(large[:, 5, :1], wanted, rtol=1e-4, atol=1e-7)


def test_a_class_of_each_example():
    classes = np.arange(EXAMPLES) % 3
    found = grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv2", classes=classes)
    single = [
        grad_cam(CNN, CNN_VARIABLES, IMAGES[i : i + 1], "conv2", classes=int(label))
        for i, label in enumerate(classes)
    ]
    maps = np.concatenate([each.maps for each in single])
    np.testing.assert_allclose(found.maps, maps, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(found.classes, classes)


def test_batches_and_ghost_batches():
    parts = [IMAGES[:4], IMAGES[4:]]
    whole = grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv2")
    lists = grad_cam(CNN, CNN_VARIABLES, [(part, None) for part in parts], "conv2")
    np.testing.assert_allclose(whole.maps, lists.maps, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(lists.images, IMAGES)
    ghosts = grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv2", mode=Ghost(4))
    trained = grad_cam(CNN, CNN_VARIABLES, [(part,) for part in parts], "conv2", mode=TRAIN)
    np.testing.assert_allclose(ghosts.maps, trained.maps, rtol=1e-4, atol=1e-7)
    assert not np.allclose(ghosts.maps, whole.maps, rtol=0.1)


class NnxPooled(nnx.Module):
    def __init__(self, params):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)
        for layer, name in ((self.conv, "conv"), (self.head, "head")):
            layer.kernel.set_value(params[name]["kernel"])
            layer.bias.set_value(params[name]["bias"])

    def __call__(self, image):
        return self.head(nnx.relu(self.conv(image)).mean((1, 2)))


def test_nnx_and_any_batch():
    variables = Pooled().init(jax.random.key(4), IMAGES)
    wanted = grad_cam(Pooled(), variables, IMAGES, "conv", mode=EVAL)
    network, own = from_nnx(NnxPooled(variables["params"]))
    for batch in (IMAGES, (IMAGES, Y), [IMAGES, Y], {"image": IMAGES, "label": Y}):
        found = grad_cam(network, own, batch, "conv")
        np.testing.assert_allclose(found.maps, wanted.maps, rtol=1e-4, atol=1e-7)
        assert found.layer == "conv"


class Regression(nn.Module):
    """One score, from a sequence of tokens; also returned in a dict."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(10, 4, name="embed")(tokens)
        return {"score": nn.Dense(1, name="head")(jnp.tanh(x).mean(1))[:, 0], "other": x}


def test_places_of_a_sequence_and_outputs_without_classes():
    tokens = jnp.arange(24).reshape(4, 6) % 10
    variables = Regression().init(jax.random.key(0), tokens)
    found = grad_cam(Network(Regression(), output="score"), variables, tokens, "embed")
    assert found.maps.shape == (4, 6) and found.classes is None and found.image_maps is None
    table, head = variables["params"]["embed"]["embedding"], variables["params"]["head"]["kernel"]
    x = np.asarray(table[tokens])
    gradient = (1 - np.tanh(x) ** 2) * np.asarray(head)[None, None, :, 0] / 6
    wanted = np.maximum((x * gradient.mean(1, keepdims=True)).sum(-1), 0)
    np.testing.assert_allclose(found.maps, wanted, rtol=1e-4, atol=1e-7)
    assert found.plot().get_xlabel() == "place"
    assert found.rows()[0]["class"] is None


def test_the_result():
    found = grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv2")
    rows = found.rows()
    assert len(rows) == EXAMPLES and rows[0]["class"] == found.classes[0]
    assert rows[2]["peak"] == found.maps[2].max() == found.maps[2][rows[2]["peak at"]]
    empty = (found.maps.reshape(EXAMPLES, -1).max(1) == 0).sum()
    summary = found.summary()
    assert summary["maps"] == EXAMPLES and summary["empty maps"] == empty
    assert 0 < summary["effective area"] <= 1
    assert len(repr(found).splitlines()) == 2 + EXAMPLES
    axes = found.plot(title="mine")
    assert axes.get_title(loc="left") == "mine" and len(axes.images) == 3 * EXAMPLES


class PlacesFirst(nn.Module):
    """Its layer has the places before the examples."""

    @nn.compact
    def __call__(self, images):
        places = jnp.moveaxis(images[:, :6, 0], 1, 0)
        return nn.Dense(3, name="conv")(places).mean(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grad_cam(FUNCTION, PAIRS, X, "head"), "no layers; grad_cam takes"),
        (lambda: grad_cam(LINEN, VARIABLES, X, "first"), r"places\.\.\., channels"),
        (
            lambda: grad_cam(
                PlacesFirst(), PlacesFirst().init(jax.random.key(0), IMAGES), IMAGES, "conv"
            ),
            r"layer 'conv' returns \(6, 8, 3\) for 8 examples",
        ),
        (lambda: grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv3"), "did you mean 'conv"),
        (lambda: grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv*"), "layers selects conv1, conv2"),
        (lambda: grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv1", classes=3), "0 to 2"),
        (lambda: grad_cam(CNN, CNN_VARIABLES, IMAGES, "conv1", classes=[0, 1]), r"integers \(8,\)"),
        (
            lambda: grad_cam(
                Regression(),
                Regression().init(jax.random.key(0), jnp.ones((2, 3), jnp.int32)),
                jnp.ones((2, 3), jnp.int32),
                "embed",
            ),
            "a dict with 'score', 'other'; allowed: floats",
        ),
        (
            lambda: grad_cam(CNN, CNN_VARIABLES, batch=IMAGES, layers=("conv1", "conv2")),
            "the path of one layer",
        ),
    ],
)
def test_what_has_no_map(call, message):
    with pytest.raises(InputError, match=message):
        call()
