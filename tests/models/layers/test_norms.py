"""Normalisation: its scopes by brute force, group norm against flax, and errors in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepjax import create_model
from deepjax.errors import InputError
from deepjax.models.layers.norms import BatchNorm, GroupNorm, norm_factory

X = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 4, 4, 6))


def test_a_ghost_batch_has_statistics_of_its_own():
    """As if each group of images were normalised alone; running averages use the groups' mean."""
    ghost, whole = BatchNorm(True, bn_scope=2), BatchNorm(True)
    variables = whole.init(jax.random.key(0), X)
    y, updated = ghost.apply(variables, X, mutable=["batch_stats"])
    parts = [whole.apply(variables, X[i : i + 2], mutable=["batch_stats"]) for i in range(0, 8, 2)]
    np.testing.assert_allclose(y, np.concatenate([part[0] for part in parts]), rtol=1e-4, atol=1e-5)
    expected = jax.tree.map(lambda *leaves: sum(leaves) / 4, *[part[1] for part in parts])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, expected)
    assert not np.allclose(y, whole.apply(variables, X, mutable=["batch_stats"])[0], atol=1e-2)


@pytest.mark.eight_devices
def test_replica_is_each_devices_slice_and_global_the_global_batch():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    variables = BatchNorm(True).init(jax.random.key(0), X)
    spread = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))

    def run(scope):
        module = BatchNorm(True, bn_scope=scope)
        return jax.jit(lambda v, x: module.apply(v, x, mutable=["batch_stats"])[0])

    with jax.set_mesh(mesh):
        replica, whole = run("replica")(variables, spread), run("global")(variables, spread)
    np.testing.assert_allclose(replica, run(2)(variables, X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole, run("global")(variables, X), rtol=1e-5, atol=1e-5)
    # one device is one share
    np.testing.assert_allclose(run("replica")(variables, X), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scope", [3, 0, -2, "device"])
def test_a_scope_that_does_not_divide_the_batch_is_named(scope):
    with pytest.raises(InputError, match="bn_scope is"):
        BatchNorm(True, bn_scope=scope).init(jax.random.key(0), X)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_scope_that_does_not_exist_is_named_in_evaluation_too(norm):
    model = create_model("cifar_resnet20", norm=norm, bn_scope="device")
    with pytest.raises(
        InputError,
        match="bn_scope is 'device'; allowed: 'global', 'replica', or a number of images, 1 or",
    ):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), X)


@pytest.mark.parametrize("channels", [64, 6])
def test_group_norm_equals_flax_s(channels):
    x = 1 + jax.random.normal(jax.random.key(2), (3, 5, 4, channels))
    # the largest number of groups up to 32 that divides 32 and the channels
    groups = 32 if channels == 64 else 2
    params = {"scale": jnp.linspace(0.5, 2, channels), "bias": jnp.linspace(-1, 1, channels)}
    expected = nn.GroupNorm(num_groups=groups, epsilon=1e-5).apply({"params": params}, x)
    np.testing.assert_allclose(
        GroupNorm().apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4
    )


def test_none_leaves_the_input_and_gives_convolutions_biases():
    assert (
        norm_factory("none", True, "global", jnp.float32, jnp.float32)(name="n").apply({}, X) is X
    )
    params = jax.eval_shape(create_model("cifar_resnet20", norm="none").init, jax.random.key(0), X)[
        "params"
    ]
    assert "bias" in params["stem_conv"] and "stem_norm" not in params
    with pytest.raises(InputError, match="norm is 'layer'"):
        jax.eval_shape(create_model("cifar_resnet20", norm="layer").init, jax.random.key(0), X)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backward_pass_keeps_one_map(dtype):
    """The input in float32; autodiff of jnp.square would keep 2 x too, per scanned block."""
    norm = BatchNorm(True, dtype=dtype)
    variables, x = norm.init(jax.random.key(0), X), X.astype(dtype)

    def pullback(x):
        return jax.vjp(lambda x: norm.apply(variables, x, mutable=["batch_stats"])[0], x)[1]

    kept = [leaf for leaf in jax.tree.leaves(jax.eval_shape(pullback, x)) if leaf.shape == X.shape]
    assert [leaf.dtype for leaf in kept] == [jnp.float32]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("train", [False, True])
def test_statistics_in_16_bits_are_used_in_float32(dtype, train):
    """As after upcasting them, bitwise."""
    rng = np.random.default_rng(0)
    small = {
        "params": {"scale": rng.uniform(0.5, 2, 6), "bias": rng.normal(size=6)},
        "batch_stats": {"mean": rng.normal(size=6), "var": rng.uniform(0.1, 9, 6)},
    }
    small = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), small)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), small)
    got, expected = (
        BatchNorm(train).apply(variables, X, mutable=["batch_stats"]) for variables in (small, wide)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    if not train:
        mean, var = (np.asarray(wide["batch_stats"][name], np.float64) for name in ("mean", "var"))
        scale, bias = (np.asarray(wide["params"][name], np.float64) for name in ("scale", "bias"))
        closed = (np.asarray(X, np.float64) - mean) / np.sqrt(var + 1e-5) * scale + bias
        np.testing.assert_allclose(got[0], closed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("ratio", "within"), [(30, 1e-3), (300, 0.015)])
def test_up_to_which_ratio_of_mean_to_std_one_pass_is_good(ratio, within):
    """The std of the output is 1; BatchNorm's docstring states the ratios."""
    x = jnp.asarray(ratio + np.random.default_rng(0).standard_normal((64, 8, 8, 16)), jnp.float32)
    norm = BatchNorm(True)
    y = norm.apply(norm.init(jax.random.key(0), x), x, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(np.std(np.asarray(y, np.float64), (0, 1, 2)), 1, atol=within)


@pytest.mark.parametrize(
    ("shape", "scope"), [((1, 1, 1, 6), "global"), ((4, 1, 1, 6), 1), ((1, 6), "global")]
)
def test_a_single_value_a_channel_is_no_batch(shape, scope):
    """Its normalised value and gradients are 0. It initialises and is evaluated nevertheless."""
    x = jnp.ones(shape)
    variables = BatchNorm(True, bn_scope=scope).init(jax.random.key(0), x)
    assert BatchNorm(False, bn_scope=scope).apply(variables, x).shape == shape
    with pytest.raises(InputError, match="BatchNorm has one value per channel to train on"):
        BatchNorm(True, bn_scope=scope).apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize(("shape", "scope"), [((2, 1, 1, 6), "global"), ((1, 1, 2, 6), 1)])
def test_two_values_a_channel_are(shape, scope):
    norm = BatchNorm(True, bn_scope=scope)
    x = jnp.arange(12.0).reshape(shape)
    y = norm.apply(norm.init(jax.random.key(0), x), x, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(y.reshape(2, 6), np.repeat([[-1.0], [1.0]], 6, 1), rtol=1e-5)
