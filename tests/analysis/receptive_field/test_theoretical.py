"""Receptive fields: brute force (propagation of a NaN), closed forms, and published values."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepjax.analysis import ReceptiveField, receptive_fields
from deepjax.errors import InputError
from deepjax.models import create_model
from deepjax.models.layers.pooling import (
    adaptive_avg_pool,
    avg_pool,
    local_response_norm,
    max_pool,
    shortcut_pool,
)

WHOLE = ReceptiveField(None, None, None)


def conv(x, size, stride=1, padding=None, dilation=1, **options):
    """A convolution of all ones that keeps one channel."""
    padding = (size // 2 * dilation,) * 2 if padding is None else padding
    return lax.conv_general_dilated(
        x,
        jnp.ones((size, size, 1, 1)),
        (stride, stride),
        (padding, padding),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **options,
    )


def reached(function, height, width):
    """[i, r]: whether unit i sees row r of the image, and the same for columns, by NaNs there."""
    images = np.zeros((height + width, height, width, 1), np.float32)
    images[range(height), range(height)] = np.nan
    images[range(height, height + width), :, range(width)] = np.nan
    seen = np.isnan(np.asarray(jax.jit(function)(images)))
    return seen[:height].any((2, 3)).T, seen[height:].any((1, 3)).T


def inception(x):
    return jnp.concatenate([conv(x, 1), conv(x, 3), conv(conv(x, 1), 5), max_pool(x, 3, 1, 1)], -1)


def residual(x):
    y = conv(jax.nn.relu(conv(x, 3, 2)), 3)
    return jax.nn.relu(y + shortcut_pool(x, 2))


NETWORKS = {
    "convolutions": lambda x: conv(conv(conv(x, 7, 2), 3), 3, 2),
    "one-sided padding": lambda x: conv(conv(x, 3, 2, (0, 1)), 3, 1, (2, 0)),
    "no padding": lambda x: conv(conv(x, 3, 2, (0, 0)), 4, 1, (0, 0)),
    "cropping": lambda x: conv(conv(x, 3, 2), 5, 1, (-1, 0)),
    "pools": lambda x: avg_pool(max_pool(conv(x, 3), 3, 2, 1), 2, 2),
    "hanging windows": lambda x: max_pool(max_pool(x, 3, 2, ceil=True), 3, 2, ceil=True),
    "windows of two shapes": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 2, 4, 1), (1, 3, 1, 1), "SAME"
    ),
    "inception": inception,
    "residual": residual,
    "subsampled shortcut": lambda x: x[:, ::2, ::2] + conv(x, 3, 2),
    "across channels": lambda x: local_response_norm(jnp.tile(conv(x, 3), (1, 1, 1, 6))),
    "normalised": lambda x: x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1),
    "dense over channels": lambda x: jnp.dot(conv(x, 3, 2), jnp.ones((1, 4))),
    "transposed and back": lambda x: conv(x.transpose(0, 2, 1, 3), 3, 2).transpose(0, 2, 1, 3),
    "split": lambda x: conv(jnp.multiply(*jnp.split(jnp.tile(x, (1, 1, 1, 2)), 2, -1)), 3),
    "remat": jax.checkpoint(lambda x: conv(lax.stop_gradient(jax.nn.gelu(conv(x, 3, 2))), 3)),
    "scan": lambda x: lax.scan(lambda y, k: (conv(y, 3) * k, None), conv(x, 3, 2), jnp.ones(3))[0],
    "cond": lambda x: lax.cond(True, lambda y: conv(y, 3), lambda y: conv(y, 1), x),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_brute_force_sees_the_same_pixels(name):
    height, width = 29, 22
    function = NETWORKS[name]
    field = receptive_fields(function, (height, width, 1))
    for axis, (seen, extent) in enumerate(
        zip(reached(function, height, width), (height, width), strict=True)
    ):
        first = np.arange(len(seen)) * field.stride[axis] - field.padding[axis]
        expected = (first[:, None] <= np.arange(extent)) & (
            np.arange(extent) < first[:, None] + field.size[axis]
        )
        if name == "cond":  # only one of the branches is taken
            assert (seen <= expected).all() and field.size == (3, 3)
        else:
            np.testing.assert_array_equal(seen, expected)


def test_a_dilated_window_has_gaps_and_the_field_spans_them():
    field = receptive_fields(partial(conv, size=3, dilation=4), (41, 41, 1))
    assert field == ReceptiveField((9, 9), (1, 1), (4, 4))


def test_any_layout_of_a_convolution():
    """A 3 x 5 kernel, stride 2 along the width; layout (batch, channel, width, height)."""

    def function(images):
        images, kernel = images.transpose(0, 3, 2, 1), jnp.ones((2, 1, 5, 3))
        return lax.conv_general_dilated(
            images, kernel, (2, 1), ((0, 0), (1, 1)), dimension_numbers=("NCWH", "OIWH", "NHWC")
        )

    field = receptive_fields(lambda images: function(images).transpose(0, 2, 1, 3), (20, 20, 1))
    assert field == ReceptiveField((3, 5), (1, 2), (1, 0))


def test_a_window_is_a_window_whatever_it_computes():
    window = (1, 2, 3, 1), (1, 2, 1, 1), ((0, 0), (0, 1), (1, 1), (0, 0))
    kinds = ((0.0, lax.add), (-jnp.inf, lax.max), (jnp.inf, lax.min), (1.0, lax.mul))
    fields = receptive_fields(
        lambda x: [lax.reduce_window(x, start, kind, *window) for start, kind in kinds], (20, 20, 1)
    )
    assert fields == [ReceptiveField((2, 3), (2, 1), (0, 1))] * 4


WHOLE_IMAGE = {
    "global pool": lambda x: jnp.mean(x, (1, 2)),
    "squeeze and excite": lambda x: x * jnp.mean(x, (1, 2), keepdims=True),
    "then a convolution": lambda x: conv(x - jnp.mean(x, (1, 2), keepdims=True), 3, 2),
    "flatten": lambda x: x.reshape(1, -1) @ jnp.ones((x.size, 3)),
    "attention": lambda x: jnp.einsum("bhwc,bijc->bhwij", x, x).sum((3, 4)),
    "sorted": lambda x: jnp.sort(x, 1) + jnp.sort(x, 2),
    "unknown": lambda x: jnp.fft.fft2(x, axes=(1, 2)).real,
    "kernel from the image": lambda x: lax.conv_general_dilated(
        x, x.mean((1, 2), keepdims=True), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "scan over rows": lambda x: lax.scan(
        lambda y, row: (y + row, y), x[:, 0], x.transpose(1, 0, 2, 3)
    )[1].sum(2),
}


@pytest.mark.parametrize("name", WHOLE_IMAGE)
def test_the_whole_image_is_seen_or_may_be(name):
    assert receptive_fields(WHOLE_IMAGE[name], (16, 16, 1)) == WHOLE


def test_regional_means_are_exact():
    assert receptive_fields(partial(adaptive_avg_pool, size=4), (16, 16, 1)) == ReceptiveField(
        (4, 4), (4, 4), (0, 0)
    )
    # PyTorch's regions of 9 pixels in 4: 0-2, 2-4, 4-6, 6-8.
    assert receptive_fields(partial(adaptive_avg_pool, size=4), (9, 16, 1)) == ReceptiveField(
        (3, 4), (2, 4), (0, 0)
    )
    # And of 10 in 4: 0-2, 2-4, 5-7, 7-9, which are not equally far apart.
    assert receptive_fields(partial(adaptive_avg_pool, size=4), (10, 16, 1)) == ReceptiveField(
        (3, 4), None, None
    )


def test_one_field_an_output_and_none_without_the_images():
    fields = receptive_fields(
        lambda x, bias: {"a": conv(x, 3), "b": (jnp.zeros(3) + bias, x)}, (8, 8, 1), jnp.ones(3)
    )
    assert fields["a"].size == (3, 3)
    assert fields["b"] == (
        ReceptiveField((0, 0), None, None),
        ReceptiveField((1, 1), (1, 1), (0, 0)),
    )


def test_means_over_rows_keep_the_columns():
    assert receptive_fields(lambda x: conv(x, 3).mean(1), (12, 20, 1)) == ReceptiveField(
        (12, 3), None, None
    )


def test_a_shape_that_is_no_image_is_refused():
    with pytest.raises(InputError, match="input_shape"):
        receptive_fields(jnp.sum, (8, 8))


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def test_custom_gradients_are_looked_into():
    assert receptive_fields(lambda x: conv(doubled(x), 3), (8, 8, 1)).size == (3, 3)


# (size, stride) by stage by hand, size += (kernel - 1) * stride over the longest path of the
# papers' tables. The fifth stage of VGG-16 and the last of the three _v1, with the stride in the
# 1x1, are also in TensorFlow's receptive_field library (vgg_16/pool5 212; resnet_v1_50, _101, _152:
# 483, 1027, 1507).
KNOWN = {
    "vgg11": [(4, 2), (10, 4), (30, 8), (70, 16), (150, 32)],
    "vgg13": [(6, 2), (16, 4), (36, 8), (76, 16), (156, 32)],
    "vgg16": [(6, 2), (16, 4), (44, 8), (100, 16), (212, 32)],
    "vgg19": [(6, 2), (16, 4), (52, 8), (124, 16), (268, 32)],
    "resnet18": [(43, 4), (99, 8), (211, 16), (435, 32)],
    "resnet34": [(59, 4), (179, 8), (547, 16), (899, 32)],
    "resnet50": [(35, 4), (91, 8), (267, 16), (427, 32)],
    "resnet50_v1": [(35, 4), (99, 8), (291, 16), (483, 32)],
    "resnet101": [(35, 4), (91, 8), (811, 16), (971, 32)],
    "resnet101_v1": [(35, 4), (99, 8), (835, 16), (1027, 32)],
    "resnet152": [(35, 4), (155, 8), (1291, 16), (1451, 32)],
    "resnet152_v1": [(35, 4), (163, 8), (1315, 16), (1507, 32)],
    "cifar_resnet20": [(15, 1), (37, 2), (81, 4)],
    "cifar_resnet32": [(23, 1), (61, 2), (137, 4)],
    "cifar_resnet44": [(31, 1), (85, 2), (193, 4)],
    "cifar_resnet56": [(39, 1), (109, 2), (249, 4)],
    "cifar_resnet110": [(75, 1), (217, 2), (501, 4)],
}


def stages(model, side):
    """The field of each stage that a network of ours offers."""
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    )
    _, sown = receptive_fields(
        lambda x, v: model.apply(v, x, mutable=["features"]), (side, side, 3), variables
    )
    return sown["features"]


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks(name):
    fields = stages(create_model(name, width=4), 64 if name.startswith("cifar") else 224)
    for stage, (size, stride) in enumerate(KNOWN[name], 1):
        field = fields[f"stage{stage}"]
        assert (field.size, field.stride) == ((size, size), (stride, stride))


@pytest.mark.parametrize("name", ["resnet34", "cifar_resnet20"])
def test_scanned_stages_see_what_unrolled_ones_see(name):
    assert stages(create_model(name, width=4, scan=True), 128) == stages(
        create_model(name, width=4), 128
    )


@pytest.mark.parametrize(("largest", "size"), [(5, 715), (3, 395)])
def test_googlenet_by_its_longest_path(largest, size):
    """Table 1, 5b, by hand over the longest path (the 5x5 branch, which is 3x3 in torchvision)."""

    def module(x):
        return jnp.concatenate(
            [
                conv(x, 1),
                conv(conv(x, 1), 3),
                conv(conv(x, 1), largest),
                conv(max_pool(x, 3, 1, 1), 1),
            ],
            -1,
        )[..., :1]

    def pool(x):
        return max_pool(x, 3, 2, ceil=True)

    def network(x):
        x = pool(conv(conv(pool(conv(x, 7, 2)), 1), 3))
        for modules in (2, 5):
            for _ in range(modules):
                x = module(x)
            x = pool(x)
        return module(module(x))

    assert receptive_fields(network, (224, 224, 1)).size == (size, size)
    assert receptive_fields(network, (224, 224, 1)).stride == (32, 32)
