"""GoogLeNet: Table 1 by rows, the naive module, auxiliary heads, forward passes without flax."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepjax.analysis import count_macs
from deepjax.backend.jax_internals import Literal
from deepjax.errors import InputError
from deepjax.models.googlenet import (
    INITIALIZATION,
    TABLE,
    TORCHVISION,
    AuxiliaryHead,
    GoogLeNet,
    Inception,
    Row,
    _pool,
    conv_unit,
)
from deepjax.models.layers.basic import conv_factory
from deepjax.models.layers.initializers import Initialization, he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.models.weights.torch_inception import googlenet_names

IMAGENET = (224, 224, 3)
MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
CONV = conv_factory(he_normal, jnp.float32, jnp.float32, use_bias=True)
UNIT = conv_unit(CONV, norm_factory("none", False, "global", jnp.float32, jnp.float32))


@functools.cache
def abstract(model, shape):
    """Shapes of the variables; they do not depend on the images' height and width."""
    return jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    )


def random_variables(model, shape):
    """Variables from NumPy: compiling the initialisation would take longer than the test."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return jnp.asarray(rng.normal(0, deviation, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, abstract(model, shape))


def plain_conv(variables, x, name, padding=0, stride=1):
    p = variables["params"][name]
    sides = ((padding, padding),) * 2
    y = lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.maximum(y + p["bias"].reshape(1, 1, 1, -1), 0)


def plain_max_pool(x, stride, padding):
    return lax.reduce_window(
        x,
        -np.inf,
        lax.max,
        (1, 3, 3, 1),
        (1, stride, stride, 1),
        ((0, 0), padding, padding, (0, 0)),
    )


def parameters(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("fields", "params", "with_heads", "macs"),
    [
        ({}, 6_998_552, 13_378_280, 1_582_671_872),
        ({"norm": "batch"}, 7_005_832, 13_385_816, 1_582_671_872),
        (TORCHVISION, 6_624_904, 13_004_888, 1_498_376_192),
        # Heads on maps of 1,280 and 2,640 channels: 128 (c + 1) for the 1x1, 1,024 * 2,049 and
        # 1,000 * 1,025 for the linear layers.
        ({"reduce": False}, 97_521_848, 104_270_216, 12_555_216_000),
    ],
    ids=["paper", "batch", "torchvision", "naive"],
)
def test_parameters_and_multiply_adds(fields, params, with_heads, macs):
    """Those of the heads do not count in evaluation: they are not computed."""
    model = GoogLeNet(**fields)
    variables = abstract(model, (8, 8, 3))["params"]
    assert parameters(variables) == with_heads
    assert (
        parameters(
            {name: tree for name, tree in variables.items() if not name.startswith("auxiliary")}
        )
        == params
    )
    assert count_macs(model, IMAGENET) == macs


# Table 1's output sizes; parameters with biases and multiply-adds by hand from its filters.
ROWS = [
    ("3a", (28, 28, 192), 256, 163_696, 128_049_152),
    ("3b", (28, 28, 256), 480, 388_736, 304_267_264),
    ("4a", (14, 14, 480), 512, 376_176, 73_608_192),
    ("4b", (14, 14, 512), 512, 449_160, 87_908_352),
    ("4c", (14, 14, 512), 512, 510_104, 99_850_240),
    ("4d", (14, 14, 512), 528, 605_376, 118_515_712),
    ("4e", (14, 14, 528), 832, 868_352, 169_996_288),
    ("5a", (7, 7, 832), 832, 1_043_456, 51_079_168),
    ("5b", (7, 7, 832), 1024, 1_444_080, 70_697_984),
]
NAIVE = [
    ("3a", (28, 28, 192), 416, 387_296, 303_464_448),
    ("3b", (28, 28, 416), 832, 1_770_912, 1_388_068_864),
    ("4a", (14, 14, 832), 1280, 2_716_096, 532_267_008),
    ("4b", (14, 14, 1280), 1728, 4_833_728, 947_322_880),
    ("4c", (14, 14, 1728), 2176, 6_967_744, 1_365_590_016),
    ("4d", (14, 14, 2176), 2640, 9_365_968, 1_835_638_784),
    ("4e", (14, 14, 2640), 3344, 16_727_744, 3_278_499_840),
    ("5a", (7, 7, 3344), 4048, 21_188_288, 1_038_191_616),
    ("5b", (7, 7, 4048), 4944, 28_498_816, 1_396_398_080),
]


@pytest.mark.parametrize(
    ("reduce", "row"), [(True, row) for row in ROWS] + [(False, row) for row in NAIVE]
)
def test_rows_of_table_1(reduce, row):
    name, shape, _, params, macs = row
    assert (
        parameters(abstract(GoogLeNet(reduce=reduce), (8, 8, 3))["params"][f"inception{name}"])
        == params
    )
    assert count_macs(Inception(TABLE[f"inception{name}"], 5, reduce, UNIT), shape) == macs


@pytest.mark.parametrize(
    ("reduce", "depth", "macs"), [(False, 672, 854_196_224), (True, 480, 271_351_808)]
)
def test_the_bottleneck_example_of_cs231n(reduce, depth, macs):
    """28x28x256 into 128 1x1, 192 3x3, 96 5x5, with reductions and a projection to 64.

    The slide's 358M counts the 3x3 twice.
    """
    module = Inception(Row(128, 64, 192, 64, 96, 64), 5, reduce, UNIT)
    shape = (28, 28, 256)
    assert count_macs(module, shape) == macs
    assert (
        jax.eval_shape(
            module.init_with_output,
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        )[0].shape[-1]
        == depth
    )


@pytest.mark.parametrize(("reduce", "rows"), [(True, ROWS), (False, NAIVE)])
def test_stages_have_table_1_s_shapes(reduce, rows):
    model = GoogLeNet(reduce=reduce)
    images = jax.ShapeDtypeStruct((2, *IMAGENET), jnp.float32)
    logits, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, mutable=["features"]), abstract(model, (8, 8, 3)), images
    )
    shapes = {name: leaf.shape for name, leaf in state["features"].items()}
    expected = {f"inception{name}": (2, *shape[:2], depth) for name, shape, depth, *_ in rows}
    assert shapes == {"stem": (2, 28, 28, 192), "pooled": (2, rows[-1][2])} | expected
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize("reduce", [True, False])
def test_inception_module_equals_one_written_without_flax(reduce):
    module = Inception(Row(2, 3, 4, 5, 6, 7), 5, reduce, UNIT)
    variables = random_variables(module, (6, 5, 3))
    x = np.random.default_rng(1).normal(size=(2, 6, 5, 3)).astype(np.float32)

    def plain(variables, x):
        conv = functools.partial(plain_conv, variables)
        pooled = plain_max_pool(x, 1, (1, 1))
        inner3, inner5 = (conv(x, "reduce3x3"), conv(x, "reduce5x5")) if reduce else (x, x)
        last = conv(pooled, "project") if reduce else pooled
        return jnp.concatenate(
            [conv(x, "conv1x1"), conv(inner3, "conv3x3", 1), conv(inner5, "conv5x5", 2), last], -1
        )

    expected = jax.jit(plain)(variables, x)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_the_stem_normalises_after_the_first_pool_and_before_the_second():
    """Figure 3, with the Caffe release's values.

    5 channels, alpha 1e-4 (divided by 5), beta 0.75, k 1.
    """
    model = GoogLeNet(width=8, auxiliary=False)
    variables = random_variables(model, (16, 16, 1))
    # large, or it would hardly show
    images = np.random.default_rng(1).normal(0, 50, (2, 16, 16, 1)).astype(np.float32)

    def lrn(x):
        squares = jnp.pad(jnp.square(x), ((0, 0), (0, 0), (0, 0), (2, 2)))
        return (
            x * (1 + 1e-4 / 5 * sum(squares[..., i : i + x.shape[-1]] for i in range(5))) ** -0.75
        )

    def plain(variables, x):
        conv = functools.partial(plain_conv, variables)
        # on an even map the last window hangs over by one
        x = lrn(plain_max_pool(conv(x, "stem_conv1", 3, 2), 2, (0, 1)))
        return plain_max_pool(lrn(conv(conv(x, "stem_reduce2"), "stem_conv2", 1)), 2, (0, 1))

    stem = jax.jit(lambda v, x: model.apply(v, x, mutable=["features"])[1]["features"]["stem"])(
        variables, images
    )
    np.testing.assert_allclose(stem, jax.jit(plain)(variables, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [(1, 2), (2, 5), (4, 7)])
def test_pools_of_small_maps_take_what_there_is(window, size):
    x = np.random.default_rng(0).normal(size=(1, *size, 2)).astype(np.float32)
    # a window for every pixel, begun inside
    starts = [range(0, max(1, side - window + 2), 2) for side in size]
    expected = [
        [x[:, i : i + window, j : j + window].max((1, 2)) for j in starts[1]] for i in starts[0]
    ]
    np.testing.assert_array_equal(
        _pool(jnp.asarray(x), window), np.moveaxis(np.asarray(expected), 2, 0)
    )


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((1, 1, 1), {}),
        ((8, 8, 1), TORCHVISION),
        ((28, 31, 4), {"norm": "group"}),
        ((9, 5, 2), {"reduce": False}),
    ],
    ids=["paper", "torchvision", "group", "naive"],
)
def test_any_size_width_and_channel_count_in_bfloat16_with_float32_logits(fields, shape):
    model = GoogLeNet(num_classes=7, width=1, dtype=jnp.bfloat16, **fields)
    variables = abstract(model, shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    images = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
    logits, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, mutable=["auxiliary", "features"]), variables, images
    )
    assert state["features"]["inception5b"].dtype == jnp.bfloat16
    for output in (logits, state["auxiliary"]["4a"], state["auxiliary"]["4d"]):
        assert output.shape == (3, 7)
        assert output.dtype == jnp.float32


def test_auxiliary_head_of_section_5():
    """5x5 windows of stride 3 turn 14x14 into 4x4.

    The hidden layer reads height, width, channel.
    """
    head = AuxiliaryHead(
        7, 3, 5, 0.7, "5x5", Initialization(), UNIT, False, jnp.float32, jnp.float32
    )
    variables = random_variables(head, (14, 14, 6))
    x = np.random.default_rng(1).normal(size=(2, 14, 14, 6)).astype(np.float32)
    p = jax.tree.map(np.asarray, variables["params"])
    y = np.stack(
        [x[:, i : i + 5, j : j + 5].mean((1, 2)) for i in (0, 3, 6, 9) for j in (0, 3, 6, 9)], 1
    )
    y = np.maximum(y @ p["conv"]["kernel"][0, 0] + p["conv"]["bias"], 0).reshape(2, 48)
    y = np.maximum(y @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    np.testing.assert_allclose(
        head.apply(variables, x),
        y @ p["logits"]["kernel"] + p["logits"]["bias"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_dropout_of_a_head_follows_its_key():
    head = AuxiliaryHead(
        7, 3, 64, 0.7, "5x5", Initialization(), UNIT, True, jnp.float32, jnp.float32
    )
    variables = random_variables(head, (4, 4, 6))
    apply = jax.jit(
        lambda key: head.apply(variables, jnp.ones((1, 4, 4, 6)), rngs={"dropout": key})
    )
    first, again, other = (apply(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_the_heads_cost_what_the_paper_s_would():
    """1,591,044,096 multiply-adds with both heads."""
    heads = [
        count_macs(
            AuxiliaryHead(
                1000, 128, 1024, 0.7, "5x5", Initialization(), UNIT, False, jnp.float32, jnp.float32
            ),
            shape,
        )
        for shape in ((14, 14, 512), (14, 14, 528))
    ]
    assert sum(heads) == 1_591_044_096 - 1_582_671_872


def test_heads_and_dropout_are_computed_only_where_they_are_wanted():
    model = GoogLeNet(num_classes=7, width=1)
    variables = abstract(model, (8, 8, 3))
    images = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)

    def products_and_draws(train, mutable):
        rngs = {"dropout": jax.random.key(0)} if train else None
        jaxpr = str(
            jax.make_jaxpr(lambda v, x: model.apply(v, x, train=train, rngs=rngs, mutable=mutable))(
                variables, images
            )
        )
        return jaxpr.count("dot_general"), "random_bits" in jaxpr

    plain, draws = products_and_draws(False, ["batch_stats"])
    assert not draws
    # of each head a 1x1 convolution and two linear layers
    assert products_and_draws(False, ["auxiliary"]) == (
        plain + 6,
        False,
    )
    assert products_and_draws(True, ["batch_stats"]) == (plain, True)
    assert set(variables) == {"params"}  # nothing is sown while initialising
    without = abstract(GoogLeNet(num_classes=7, width=1, auxiliary=False), (8, 8, 3))["params"]
    assert set(variables["params"]) - set(without) == {"auxiliary4a", "auxiliary4d"}


def test_a_head_trains_what_lies_below_it():
    """Gradients of the others are zeros that no computation leads to."""
    model = GoogLeNet(num_classes=7, width=1)
    variables = abstract(model, (8, 8, 3))

    def loss(variables):
        images = jnp.ones((1, 64, 64, 3))
        return jnp.sum(model.apply(variables, images, mutable=["auxiliary"])[1]["auxiliary"]["4a"])

    closed, shapes = jax.make_jaxpr(jax.grad(loss), return_shape=True)(variables)
    computed = {
        v
        for eqn in closed.jaxpr.eqns
        if not all(isinstance(v, Literal) for v in eqn.invars)
        for v in eqn.outvars
    }
    trained = jax.tree.map(
        computed.__contains__, jax.tree.unflatten(jax.tree.structure(shapes), closed.jaxpr.outvars)
    )["params"]
    below = {
        "stem_conv1",
        "stem_reduce2",
        "stem_conv2",
        "inception3a",
        "inception3b",
        "inception4a",
        "auxiliary4a",
    }
    assert {name for name, tree in trained.items() if any(jax.tree.leaves(tree))} == below
    assert all(all(jax.tree.leaves(trained[name])) for name in below)


def test_initial_weights():
    key = jax.random.key(0)
    torch_s, paper_s = INITIALIZATION["torchvision"], INITIALIZATION["paper"]
    for draw in (torch_s.conv, torch_s.dense):
        assert float(jnp.std(draw(key, (1, 1, 128, 256)))) == pytest.approx(0.01, rel=0.02)
    assert float(jnp.std(paper_s.conv(key, (3, 3, 32, 64)))) == pytest.approx(
        math.sqrt(2 / 288), rel=0.02
    )
    bias = torch_s.dense_bias(1024)(key, (1000,))  # torchvision leaves PyTorch's default
    assert float(jnp.max(jnp.abs(bias))) == pytest.approx(1 / 32, rel=0.01)


@pytest.mark.parametrize(
    "fields", [{"width": 0}, {"pool4": "4x4"}, {"largest_kernel": "7x7"}, {"initialization": "he"}]
)
def test_other_choices_are_refused_by_name(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        abstract(GoogLeNet(**fields), (8, 8, 1))


def test_names_cover_torchvision_s_modules():
    variables = abstract(GoogLeNet(**TORCHVISION, width=1), (8, 8, 3))["params"]
    paths = {
        "/".join(str(key.key) for key in path[:-1])
        for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    }
    branches = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
    blocks = {f"inception{module}.{branch}" for module in MODULES for branch in branches}
    blocks |= {"conv1", "conv2", "conv3", "aux1.conv", "aux2.conv"}
    expected = {f"{block}.{part}" for block in blocks for part in ("conv", "bn")}
    assert {googlenet_names(path) for path in paths} == expected | {
        "fc",
        "aux1.fc1",
        "aux1.fc2",
        "aux2.fc1",
        "aux2.fc2",
    }
    assert len(paths) == len(expected) + 5
