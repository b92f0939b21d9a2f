"""Inception-v3: exact counts, maps, smallest images, auxiliary head, torchvision's names."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepjax.analysis import count_macs
from deepjax.backend.lowering import reference_lowering
from deepjax.errors import InputError
from deepjax.models.googlenet import conv_unit
from deepjax.models.inception_v3 import (
    INITIALIZATION,
    MODULE_B,
    MODULE_E,
    InceptionV3,
    InceptionV3AuxHead,
    Mixed,
)
from deepjax.models.layers.basic import conv_factory
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.models.weights.torch_inception import inception_v3_names

CONV = conv_factory(he_normal, jnp.float32, jnp.float32, use_bias=True)
UNIT = conv_unit(CONV, norm_factory("none", False, "global", jnp.float32, jnp.float32))


@functools.cache
def abstract(model, shape=(75, 75, 3)):
    """Shapes of the variables; they do not depend on the images' height and width."""
    return jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    )


def random_variables(model, shape):
    rng = np.random.default_rng(0)

    def draw(leaf):
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return jnp.asarray(rng.normal(0, deviation, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, abstract(model, shape))


def trace(model, shape, train=False, mutable=()):
    """The jaxpr as text, logits and collections.

    Its number of products is that of linear layers.
    """
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    rngs = {"dropout": jax.random.key(0)} if train else None
    apply = lambda v, x: model.apply(v, x, train=train, rngs=rngs, mutable=list(mutable))  # noqa: E731
    with reference_lowering():  # on a CPU 1x1 convolutions are products
        jaxpr, (logits, state) = jax.make_jaxpr(apply, return_shape=True)(
            abstract(model, (75, 75, shape[2])), images
        )
    return str(jaxpr), logits, state


def test_parameters_and_multiply_adds():
    """As torchvision counts: with the auxiliary head's parameters, without its multiply-adds."""
    params = abstract(InceptionV3())["params"]
    count = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in params.items()
    }
    assert sum(count.values()) == 27_161_264
    assert sum(count.values()) - count["auxiliary6e"] == 23_834_568
    assert count_macs(InceptionV3(), (299, 299, 3)) == 5_713_216_096
    head = InceptionV3AuxHead(1000, 32, INITIALIZATION["paper"], UNIT, jnp.float32)
    assert count_macs(head, (17, 17, 768)) == 5_718_899_296 - 5_713_216_096


def test_stages_have_the_shapes_of_figures_5_to_7():
    jaxpr, logits, state = trace(InceptionV3(), (299, 299, 3), mutable=["features"])
    shapes = {name: leaf.shape[1:] for name, leaf in state["features"].items()}
    assert shapes == {
        "stem": (35, 35, 192),
        "mixed5b": (35, 35, 256),
        "mixed5c": (35, 35, 288),
        "mixed5d": (35, 35, 288),
        "mixed6a": (17, 17, 768),
        "mixed6b": (17, 17, 768),
        "mixed6c": (17, 17, 768),
        "mixed6d": (17, 17, 768),
        "mixed6e": (17, 17, 768),
        "mixed7a": (8, 8, 1280),
        "mixed7b": (8, 8, 2048),
        "mixed7c": (8, 8, 2048),
        "pooled": (2048,),
    }
    assert logits.shape == (2, 1000)
    assert jaxpr.count("dot_general") == 1  # the auxiliary head is not computed
    assert "random_bits" not in jaxpr
    # nothing is sown while initialising
    assert set(abstract(InceptionV3())) == {
        "params",
        "batch_stats",
    }


def test_the_head_takes_images_from_299_pixels():
    model = InceptionV3(num_classes=7, width=1, dtype=jnp.bfloat16)
    jaxpr, _, state = trace(model, (299, 299, 3), train=True, mutable=["auxiliary", "batch_stats"])
    assert jaxpr.count("dot_general") == 2
    assert jaxpr.count("random_bits") > 0  # dropout
    assert state["auxiliary"]["6e"].shape == (2, 7)
    assert state["auxiliary"]["6e"].dtype == jnp.float32
    with pytest.raises(InputError, match=r"298x320 pixels.*299"):
        trace(model, (298, 320, 3), mutable=["auxiliary"])


@pytest.mark.parametrize(("norm", "shape"), [("batch", (75, 75, 1)), ("group", (90, 128, 4))])
def test_images_from_75_pixels_in_bfloat16_with_float32_logits(norm, shape):
    """The head's parameters exist at any size; only to compute it takes images of 299."""
    model = InceptionV3(num_classes=7, width=1, norm=norm, dtype=jnp.bfloat16)
    _, logits, state = trace(model, shape, mutable=["features"])
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32
    assert state["features"]["mixed7c"].dtype == jnp.bfloat16
    assert "auxiliary6e" in abstract(model, (75, 75, shape[2]))["params"]


def test_smaller_images_and_other_choices_are_refused():
    with pytest.raises(InputError, match=r"74x80 pixels.*75"):
        abstract(InceptionV3(width=1), (74, 80, 3))
    with pytest.raises(InputError, match="width"):
        abstract(InceptionV3(width=0))
    with pytest.raises(InputError, match="initialization"):
        abstract(InceptionV3(initialization="he"))


def plain_conv(variables, x, name, sides=(0, 0), stride=1):
    p = variables["params"][name]
    padding = [(side, side) for side in sides]
    y = lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.maximum(y + p["bias"].reshape(1, 1, 1, -1), 0)


def plain_fan(variables, x):
    """Figure 7."""
    conv = functools.partial(plain_conv, variables)
    single = conv(x, "branch3x3_conv1")
    double = conv(conv(x, "branch3x3dbl_conv1"), "branch3x3dbl_conv2", (1, 1))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    # zeros count
    pooled = sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    branches = [
        conv(x, "branch1x1_conv"),
        conv(single, "branch3x3_conv2a", (0, 1)),
        conv(single, "branch3x3_conv2b", (1, 0)),
        conv(double, "branch3x3dbl_conv3a", (0, 1)),
        conv(double, "branch3x3dbl_conv3b", (1, 0)),
        conv(pooled, "branch_pool_conv"),
    ]
    return jnp.concatenate(branches, -1)


def plain_reduction(variables, x):
    """Figure 10."""
    conv = functools.partial(plain_conv, variables)
    double = conv(conv(x, "branch3x3dbl_conv1"), "branch3x3dbl_conv2", (1, 1))
    pooled = lax.reduce_window(x, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    return jnp.concatenate(
        [conv(x, "branch3x3_conv", stride=2), conv(double, "branch3x3dbl_conv3", stride=2), pooled],
        -1,
    )


@pytest.mark.parametrize(
    ("branches", "plain"), [(MODULE_B, plain_reduction), (MODULE_E, plain_fan)]
)
def test_modules_equal_those_written_without_flax(branches, plain):
    module = Mixed(tuple(branches.items()), 1, UNIT)
    variables = random_variables(module, (7, 6, 3))
    x = np.random.default_rng(1).normal(size=(2, 7, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(module.apply)(variables, x), jax.jit(plain)(variables, x), rtol=1e-5, atol=1e-6
    )


def test_initial_weights_of_torchvision():
    """Deviations 0.1, and 0.01 and 0.001 in the auxiliary head."""
    head = InceptionV3AuxHead(50, 8, INITIALIZATION["torchvision"], UNIT, jnp.float32)
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 17, 17, 8)))["params"]
    assert float(jnp.std(params["conv2"]["kernel"])) == pytest.approx(0.01, rel=0.02)
    assert float(jnp.std(params["logits"]["kernel"])) == pytest.approx(0.001, rel=0.02)
    net = INITIALIZATION["torchvision"].net
    for draw in (net.conv, net.dense):
        assert float(jnp.std(draw(jax.random.key(0), (1, 1, 64, 500)))) == pytest.approx(
            0.1, rel=0.02
        )


# torchvision's blocks by kind of module.
BLOCKS = {
    "A": "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 "
    "branch_pool",
    "B": "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
    "C": "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch_pool "
    "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
    "D": "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
    "E": "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch_pool "
    "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b",
}
KINDS = {
    "5b": "A",
    "5c": "A",
    "5d": "A",
    "6a": "B",
    "6b": "C",
    "6c": "C",
    "6d": "C",
    "6e": "C",
    "7a": "D",
    "7b": "E",
    "7c": "E",
}


def test_names_cover_torchvision_s_modules():
    variables = abstract(InceptionV3(num_classes=7, width=1, dtype=jnp.bfloat16))["params"]
    paths = {
        "/".join(str(key.key) for key in path[:-1])
        for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    }
    blocks = {
        f"Mixed_{module}.{block}"
        for module, kind in KINDS.items()
        for block in BLOCKS[kind].split()
    }
    blocks |= {
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "AuxLogits.conv0",
        "AuxLogits.conv1",
    }
    expected = {f"{block}.{part}" for block in blocks for part in ("conv", "bn")} | {
        "fc",
        "AuxLogits.fc",
    }
    assert {inception_v3_names(path) for path in paths} == expected
    assert len(paths) == len(expected)
