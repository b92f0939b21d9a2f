"""The CIFAR networks: shapes of Table 6, the plain twin, and an independent forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from deepjax import create_model
from deepjax.models import ResNet, cifar_stages, stack_blocks, unstack_blocks
from deepjax.models.layers.basic import relu_of_sum, shortcut_a
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import BatchNorm
from deepjax.models.preact import preact_stages, wide_stages
from tests.numpy_variables import numpy_variables


def cifar(depth: int, **fields) -> ResNet:
    return create_model("cifar_resnet20", stages=cifar_stages(depth), **fields)


def variables_of(model: nn.Module, shape: tuple[int, ...]):
    return numpy_variables(model, shape)


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (8, 8, 1), (9, 13, 4)])
def test_any_size_and_channel_count(shape):
    model = cifar(8, num_classes=7, width=4)
    images = jax.random.normal(jax.random.key(1), (3, *shape))
    logits = model.apply(variables_of(model, shape), images)
    assert logits.shape == (3, 7)
    assert logits.dtype == jnp.float32


def test_the_plain_twin_has_equal_parameters_and_other_outputs():
    residual, plain = cifar(14, width=4), cifar(14, width=4, residual=False)
    variables = variables_of(residual, (8, 8, 1))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, variables_of(plain, (8, 8, 1))
    )
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    assert not np.allclose(residual.apply(variables, images), plain.apply(variables, images))


@pytest.mark.parametrize("residual", [True, False])
def test_forward_pass_equals_one_written_without_flax(residual):
    model = cifar(8, width=4, residual=residual)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 1.0, leaf.shape).astype(np.float32),
        variables_of(model, (8, 8, 1)),
    )
    images = jax.random.normal(jax.random.key(3), (2, 8, 8, 1))
    params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))

    def conv_norm(x, p, s, conv, norm, stride=1):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, p[conv]["kernel"], (stride, stride), ((1, 1), (1, 1)), dimension_numbers=dimensions
        )
        z = (np.asarray(y) - s[norm]["mean"]) / np.sqrt(s[norm]["var"] + np.float32(1e-5))
        return z * p[norm]["scale"] + p[norm]["bias"]

    x = np.maximum(conv_norm(images, params, stats, "stem_conv", "stem_norm"), 0)
    for stage in (1, 2, 3):
        p, s = params[f"stage{stage}_block1"], stats[f"stage{stage}_block1"]
        stride = 1 if stage == 1 else 2
        y = np.maximum(conv_norm(x, p, s, "conv1", "norm1", stride), 0)
        y = conv_norm(y, p, s, "conv2", "norm2")
        if residual:
            small = x[:, ::stride, ::stride]
            y[..., : small.shape[-1]] += small
        x = np.maximum(y, 0)
    expected = x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), expected, rtol=2e-4)


def test_stacked_counters_keep_their_64_bits():
    counts = {
        f"stage1_block{block}": {"norm1": {"batches": np.int64(2**40 + block)}}
        for block in (1, 2, 3)
    }
    stacked = stack_blocks({"counters": counts})
    assert stacked["counters"]["stage1_blocks"]["norm1"]["batches"].tolist() == [
        2**40 + 2,
        2**40 + 3,
    ]
    assert unstack_blocks(stacked) == {"counters": counts}


@pytest.mark.parametrize("depth", [0, 7, 21, 55, 1200])
def test_depths_that_are_not_6n_plus_2_are_refused(depth):
    with pytest.raises(ValueError, match=r"6n \+ 2"):
        cifar_stages(depth)


def test_other_depths_that_do_not_fit_are_refused():
    assert (preact_stages(164), preact_stages(1001), wide_stages(28)) == (
        (18,) * 3,
        (111,) * 3,
        (4,) * 3,
    )
    with pytest.raises(ValueError, match=r"9n \+ 2"):
        preact_stages(163)
    with pytest.raises(ValueError, match=r"6n \+ 4"):
        wide_stages(20)


def test_logits_are_float32_in_bfloat16_too():
    model = cifar(8, width=4, dtype=jnp.bfloat16)
    logits = model.apply(variables_of(model, (8, 8, 1)), jnp.zeros((2, 8, 8, 1)))
    assert logits.dtype == jnp.float32


def test_relu_of_a_sum_is_relu_with_all_its_derivatives():
    x = jnp.round(4 * jax.random.normal(jax.random.key(0), (64, 3))) / 4

    def found(relu, x):
        first = jax.grad(lambda x: jnp.sum(jnp.sin(3 * relu(x))))
        return (
            relu(x),
            first(x),
            jax.jvp(relu, (x,), (jnp.cos(x),))[1],
            jax.jvp(first, (x,), (jnp.cos(x),))[1],
        )

    assert jnp.any(x == 0)
    for ours, theirs in zip(
        *(jax.vmap(lambda x, relu=relu: found(relu, x))(x) for relu in (relu_of_sum, nn.relu)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_he_normal_equals_flax_s():
    key, shape = jax.random.key(3), (3, 3, 16, 32)
    expected = nn.initializers.variance_scaling(2.0, "fan_in", "normal")(key, shape)
    np.testing.assert_allclose(he_normal(key, shape), expected, rtol=1e-6)


def test_shortcut_a_subsamples_and_pads_with_zeros():
    x = jnp.arange(2 * 5 * 5 * 3, dtype=jnp.float32).reshape(2, 5, 5, 3)
    y = shortcut_a(x, 6, 2)
    assert y.shape == (2, 3, 3, 6)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], 0)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_flax_s_with_its_gradients(train):
    keys = jax.random.split(jax.random.key(0), 5)
    x = 3 + 2 * jax.random.normal(keys[0], (8, 4, 4, 6))
    params = {"scale": jax.random.normal(keys[1], (6,)), "bias": jax.random.normal(keys[2], (6,))}
    stats = {
        "mean": jax.random.normal(keys[3], (6,)),
        "var": jax.random.uniform(keys[4], (6,), minval=0.5),
    }

    def total(module, params, x):
        y, updated = module.apply(
            {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(y)), (y, updated["batch_stats"])

    flax_s = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    results = [
        jax.value_and_grad(lambda p, x, m=m: total(m, p, x), (0, 1), has_aux=True)(params, x)
        for m in (BatchNorm(train), flax_s)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


# Every family that scans, thin and with 3 and 2 blocks a stage.
SCANNED = {
    "resnet": ("cifar_resnet20", {}),
    "plain": ("cifar_plain20", {}),
    "option C": ("resnet18", {"stem": "cifar", "shortcut": "C", "num_classes": 10}),
    "bottleneck": ("resnet50", {"stem": "cifar", "num_classes": 10}),
    "pre-activation": ("cifar_preact164", {"stem_width": 4}),
}


@pytest.mark.parametrize(
    "kind",
    [
        k if k in ("resnet", "bottleneck") else pytest.param(k, marks=pytest.mark.slow)
        for k in SCANNED
    ],
)
def test_scanned_blocks_compute_what_unrolled_ones_do(kind):
    """Logits, statistics and gradients; and the converter there and back is the identity."""
    name, fields = SCANNED[kind]
    model = create_model(name, width=4, **({"stages": (3, 2)} | fields))
    scanned = model.clone(scan=True)
    variables = variables_of(model, (8, 8, 3))
    stacked = stack_blocks(variables)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
        jnp.shape, dict(variables_of(scanned, (8, 8, 3)))
    )
    back = unstack_blocks(stacked)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), back, dict(variables))
    )
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))

    def loss(module, params, stats):
        logits, updated = module.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(logits)), updated["batch_stats"]

    flat, (stacked_value, stacked_gradients) = (
        jax.jit(
            jax.value_and_grad(lambda p: loss(model, p, variables["batch_stats"]), has_aux=True)
        )(variables["params"]),
        jax.jit(
            jax.value_and_grad(lambda p: loss(scanned, p, stacked["batch_stats"]), has_aux=True)
        )(stacked["params"]),
    )
    (value, stats), gradients = flat
    np.testing.assert_allclose(stacked_value[0], value, rtol=1e-5)
    for ours, theirs in (
        (unstack_blocks({"": stacked_gradients}), {"": gradients}),
        (unstack_blocks({"": stacked_value[1]}), {"": stats}),
    ):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_zero_init_makes_every_block_its_shortcut(block):
    """Goyal et al. 2017, section 5.1: with zero last scales the blocks add nothing."""
    model = create_model(
        "cifar_resnet20", block=block, width=4, stages=(2,), shortcut="A", zero_init=True
    )
    variables = model.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    last = "norm2" if block == "basic" else "norm3"
    assert not jnp.any(variables["params"]["stage1_block1"][last]["scale"])
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    _, state = model.apply(variables, images, mutable=["features"])
    stem, stage = state["features"]["stem"], state["features"]["stage1"]
    np.testing.assert_array_equal(stage[..., :4], stem)


def test_the_shortcut_of_resnet_d_averages_before_it_projects():
    """Odd maps too: the last row is averaged over what there is, as timm does."""
    from deepjax.models.layers.pooling import shortcut_pool

    x = jnp.arange(9, dtype=jnp.float32).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(shortcut_pool(x, 2)[0, :, :, 0], [[2, 3.5], [6.5, 8]])
