"""Receptive fields of every layer: the papers' networks by hand, and foreign modules."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import TRAIN, from_function, from_nnx, layer_fields
from deepjax.errors import InputError
from deepjax.models import create_model

# (size, stride) by hand, size += (kernel - 1) * stride over the longest path. fc6 is a 7x7
# convolution: 6 * 32 more than pool5. googlenet has the paper's 5x5; googlenet_tv has torchvision's
# 3x3, and its 2x2 pool before the fifth stage (16 less than a 3x3). The last of inception_v3 is
# also in TensorFlow's receptive_field library (1311).
KNOWN = {
    "vgg11": {"stage5_conv2": (134, 16)},
    "vgg13": {"stage5_conv2": (140, 16)},
    "vgg16": {"stage5_conv2": (164, 16), "stage5_conv3": (196, 16)},
    "vgg19": {"stage5_conv2": (188, 16), "stage5_conv3": (220, 16), "stage5_conv4": (252, 16)},
    "googlenet": {
        "inception3b": (91, 8),
        "inception4a": (171, 16),
        "inception4d": (363, 16),
        "inception4e": (427, 16),
        "inception5b": (715, 32),
    },
    "googlenet_tv": {
        "inception3b": (59, 8),
        "inception4a": (107, 16),
        "inception4d": (203, 16),
        "inception4e": (235, 16),
        "inception5b": (379, 32),
    },
    "inception_v3": {"mixed7c": (1311, 32)},
}


def by_layer(model, shape):
    return {layer.layer: layer for layer in layer_fields(model, shape).layers}


@pytest.mark.parametrize("name", KNOWN)
def test_layers_of_known_networks(name):
    layers = by_layer(create_model(name, width=4), (224, 224, 3))
    for layer, (size, stride) in KNOWN[name].items():
        assert (layers[layer].size, layers[layer].stride) == ((size, size), (stride, stride))


@pytest.mark.parametrize(
    ("name", "size"), [("vgg11", 342), ("vgg13", 348), ("vgg16", 404), ("vgg19", 460)]
)
def test_fc6_as_a_convolution(name, size):
    layers = by_layer(create_model(name, width=4, head="conv"), (512, 512, 3))
    assert layers["head_fc6"].size == (size, size)


class Foreign(nn.Module):
    """A convolution without padding, one of stride 2, a block under remat, a layer used twice."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (5, 3), padding="VALID", name="first")(x)
        x = nn.Conv(2, (3, 3), strides=(2, 2), padding=1, name="second")(x)
        x = nn.remat(nn.Conv)(2, (3, 3), padding=1, name="inside")(x)
        shared = nn.Conv(2, (3, 3), padding=1, name="shared")
        return nn.Dense(3, name="head")(shared(shared(x)).mean((1, 2)))


def test_a_foreign_module_by_hand():
    """Columns: size 3 from i; 3 + 2 = 5, stride 2, from 2i - 1; then + 4 with every 3x3."""
    report = layer_fields(Foreign(), (40, 40, 1))
    assert [layer.layer for layer in report.layers] == ["first", "second", "shared", "shared"]
    assert [layer.size for layer in report.layers] == [(5, 3), (7, 5), (15, 13), (19, 17)]
    assert [layer.stride for layer in report.layers] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert [layer.padding for layer in report.layers] == [(0, 0), (1, 1), (5, 5), (7, 7)]
    assert [layer.centre for layer in report.layers] == [(2, 1), (2, 1), (2, 1), (2, 1)]
    assert report.skipped_layers == ("inside",)


def test_centres_are_where_gradients_are_symmetric():
    """With equal weights the gradient of a unit is symmetric about the centre of its field."""
    model = create_model("cifar_resnet20", width=2, num_classes=3)
    field = by_layer(model, (64, 64, 3))["stage2_block1/conv1"]
    variables = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), jnp.ones((1, 64, 64, 3))))

    def unit(images):
        _, sown = model.apply(
            variables,
            images,
            capture_intermediates=lambda module, _: module.name == "conv1",
            mutable=["intermediates"],
        )
        return sown["intermediates"]["stage2_block1"]["conv1"]["__call__"][0][0, 16, 16].sum()

    shares = jnp.abs(jax.grad(unit)(jnp.ones((1, 64, 64, 3))))[0].sum(-1)
    rows = jnp.flatnonzero(shares.sum(1))
    assert (rows[-1] - rows[0] + 1, (rows[-1] + rows[0]) / 2) == (
        field.size[0],
        field.centre[0] + 16 * field.stride[0],
    )


@pytest.mark.parametrize("shape", [(8, 8), (0, 8, 3), (8, 8, 3, 1)])
def test_shapes_are_checked(shape):
    with pytest.raises(InputError, match=r"input_shape .* allowed: \(height, width, channels\)"):
        layer_fields(Foreign(), shape)


def test_a_network_that_cannot_take_the_image_says_so():
    with pytest.raises(InputError, match="input_shape"):
        layer_fields(create_model("cifar_resnet20"), (0, 0, 3))


class Patches(nn.Module):
    """Attention over the pixels of a map, with normalised queries, and a residual map."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (2, 2), (2, 2), name="patches")(x)
        tokens = x.reshape(len(x), -1, 4)
        tokens = nn.MultiHeadDotProductAttention(2, normalize_qk=True, name="attention")(
            tokens, tokens
        )
        return nn.Conv(4, (3, 3), name="last")(x + tokens.reshape(x.shape))


def test_queries_keys_and_values_of_attention_are_no_maps():
    """Two of their four axes are heads and features; layers after attention see the full image."""
    layers = by_layer(Patches(), (12, 12, 3))
    assert {name: layer.size for name, layer in layers.items()} == {
        "patches": (2, 2),
        "last": None,
        "": None,
    }


class Normed(nn.Module):
    """A norm between two layers, and a vector beside the image."""

    @nn.compact
    def __call__(self, image, vector, train=False):
        x = nn.Conv(2, (3, 3), name="first")(image) + vector[:, None, None]
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Conv(2, (3, 3), name="last")(x)


def test_an_image_among_several_inputs_in_both_modes():
    shapes = {"vector": (2,), "image": (12, 12, 3)}
    evaluated, trained = (
        layer_fields(Normed(), shapes, **options) for options in ({}, {"mode": TRAIN})
    )
    sizes = {layer.layer: layer.size for layer in evaluated.layers}
    assert sizes == {"first": (3, 3), "norm": (3, 3), "last": (5, 5), "": (5, 5)}
    assert [layer.size for layer in trained.layers] == [(3, 3), None, None, None]
    assert evaluated.image_shape == (12, 12, 3)
    assert evaluated.summary()["largest field"] == 5
    assert repr(trained).splitlines()[1].split()[:2] == ["layer", "shape"]
    assert evaluated.plot(title="Mine").get_title("left") == "Mine"


class NnxPatches(nnx.Module):
    """As `Patches`, by linear layers of several features."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.patches = nnx.Conv(3, 4, (2, 2), strides=2, rngs=rngs)
        self.query = nnx.LinearGeneral(4, (2, 2), rngs=rngs)
        self.last = nnx.Conv(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.patches(x)
        return self.last(x + self.query(x.reshape(len(x), -1, 4)).mean(2).sum() * 0)


def test_layers_of_an_nnx_module_and_what_has_none():
    layers = by_layer(from_nnx(NnxPatches())[0], (12, 12, 3))
    assert {name: layer.size for name, layer in layers.items()} == {
        "patches": (2, 2),
        "last": None,
        "": None,
    }
    with pytest.raises(InputError, match="is a function, which has no layers"):
        layer_fields(from_function(lambda params, x: x), (12, 12, 3))
