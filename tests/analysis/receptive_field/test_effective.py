"""Effective fields: stacks of known spread, and layers of networks by name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import TRAIN, Ghost, Network, from_function, from_nnx
from deepjax.analysis.receptive_field.effective import average_fields, effective_field
from deepjax.errors import InputError
from tests.zoo import no_compilation


class Stack(nn.Module):
    """Linear convolutions."""

    depth: int
    size: int = 3
    channels: int = 1

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = nn.Conv(self.channels, (self.size, self.size), use_bias=False, name=f"conv{i}")(x)
        return x


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Conv(2, (3, 3), name="conv")(x), None


class Net(nn.Module):
    """Two maps, a scanned body, and logits."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(2, (3, 3), name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Conv(2, (3, 3), strides=(2, 2), name="second")(x)
        x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)(
            name="blocks"
        )(x, None)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def images(side, channels=1, batch=1):
    return jnp.asarray(
        np.random.default_rng(0).standard_normal((batch, side, side, channels), np.float32)
    )


def equal_weights(depth, size=3, side=None):
    model, x = Stack(depth, size), images(side or depth * (size - 1) + 9)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return effective_field(
        model, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1 / size**2, leaf.dtype), shapes), x
    )


@pytest.mark.parametrize("depth", [5, 10, 20, 40])
def test_equal_weights_spread_as_the_root_of_depth(depth):
    field = equal_weights(depth)
    np.testing.assert_allclose(field.sigma, math.sqrt(2 * depth / 3), rtol=1e-5)
    assert field.theoretical == (2 * depth + 1, 2 * depth + 1)
    assert field.r2 > 0.98
    # The disc in which a Gaussian is above 4.55 % of its peak has the radius 2.486 sigma.
    disc = math.sqrt(math.pi * 2 * math.log(1 / 0.0455)) * field.sigma[0]
    assert field.size == pytest.approx(disc, rel=0.04)


def test_the_field_grows_as_the_root_and_the_theoretical_one_in_proportion():
    sizes = [equal_weights(depth).size for depth in (5, 10, 20, 40)]
    assert 0.4 < np.polyfit(np.log([5, 10, 20, 40]), np.log(sizes), 1)[0] < 0.6


def test_one_7x7_against_three_3x3():
    one, three = equal_weights(1, 7, 15), equal_weights(3, 3, 15)
    assert one.theoretical == three.theoretical == (7, 7)
    np.testing.assert_allclose(one.sigma, 2.0, rtol=1e-6)
    np.testing.assert_allclose(three.sigma, math.sqrt(2), rtol=1e-6)
    assert one.size == 7 and one.ratio == 1


@pytest.mark.parametrize("depth", [5, 10])
def test_random_weights_have_that_width_in_the_square(depth):
    model, x = Stack(depth, channels=16), images(2 * depth + 9)
    draw = jax.jit(model.init)
    draws = [
        effective_field(model, draw(jax.random.key(i), x), x, power="square") for i in range(60)
    ]
    field = average_fields(draws)
    np.testing.assert_allclose(field.sigma, math.sqrt(2 * depth / 3), rtol=0.05)
    assert field.r2 > 0.95
    assert field.theoretical == (2 * depth + 1, 2 * depth + 1)


def test_a_gradient_written_out_by_hand():
    model, x = Stack(2, channels=3), images(9, 2, batch=4)
    variables = model.init(jax.random.key(1), x)
    gradient = jax.grad(lambda x: model.apply(variables, x)[:, 4, 4, 2].sum())(x)
    found = effective_field(model, variables, x, channel=2)
    np.testing.assert_allclose(found.map, jnp.abs(gradient).mean((0, 3)), rtol=1e-5)
    assert found.unit == (4, 4)


def test_layers_by_name():
    x = images(16, batch=2)
    variables = Net().init(jax.random.key(0), x)
    first, second = (
        effective_field(Net(), variables, x, layers=layer) for layer in ("first", "second")
    )
    assert (first.theoretical, second.theoretical) == ((3, 3), (5, 5))
    assert first.size <= 3 < second.size <= 5
    (row,) = first.rows()
    assert row["layer"] == "first" and row["ratio"] == first.ratio and "map" not in row
    assert effective_field(Net(), variables, x, layers="second", mode=TRAIN).theoretical == (5, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "secnd"}, "layer 'secnd' is unknown; did you mean 'second'"),
        (
            {},
            r"layer is the network's own output, of shape \(2, 3\); allowed: one that returns a ",
        ),
        ({"layers": "blocks/conv"}, "runs inside nn.scan or nn.remat"),
        ({"layers": "first", "channel": 2}, "channel is 2; allowed: None, or 0 to 1"),
        ({"layers": "first", "power": "cube"}, "power is 'cube'"),
    ],
)
def test_what_cannot_be_shown(options, message):
    x = images(16, batch=2)
    with pytest.raises(InputError, match=message):
        effective_field(Net(), Net().init(jax.random.key(0), x), x, **options)


class Maps(nn.Module):
    """Two outputs, one of them a map."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3), name="conv")(x)
        return {"map": x, "mean": x.mean((1, 2))}


def test_one_of_several_outputs():
    x = images(9)
    variables = Maps().init(jax.random.key(0), x)
    chosen = effective_field(Network(Maps(), output="map"), variables, x)
    assert chosen.theoretical == (3, 3)
    np.testing.assert_array_equal(
        chosen.map, effective_field(Maps(), variables, x, layers="conv").map
    )
    with pytest.raises(
        InputError,
        match=r"Maps returns a dict with 'map', 'mean'; .* Network\(module, output=...\) selects",
    ):
        effective_field(Maps(), variables, x)


def test_inputs_that_do_not_fit():
    variables = Stack(1).init(jax.random.key(0), images(8))
    with pytest.raises(InputError, match="Stack cannot take a batch"):
        effective_field(Stack(1), variables, images(8, channels=2))
    with pytest.raises(InputError, match=r"the inputs float32 \(8, 8\); allowed: inputs of"):
        dense = nn.Dense(2)
        effective_field(dense, dense.init(jax.random.key(0), jnp.ones((8, 8))), jnp.ones((8, 8)))
    with pytest.raises(InputError, match="no pixel influences its centre unit"):
        effective_field(Stack(1), jax.tree.map(jnp.zeros_like, variables), images(8))
    with pytest.raises(InputError, match="0 kinds of fields"):
        average_fields([])


def test_nothing_compiles_twice_and_the_figure_states_the_result():
    x = images(12)
    variables = Stack(2).init(jax.random.key(0), x)
    field = effective_field(Stack(2), variables, x)
    other = jax.tree.map(lambda leaf: 2 * leaf, variables), x + 1
    with no_compilation():
        effective_field(Stack(2), *other)
    ax = field.plot()
    assert (
        f"{field.size:.1f} pixels" in ax.get_title("left") and ax.get_xlabel() == "column (pixels)"
    )
    assert field.plot(ax) is ax


def test_maps_of_batches_are_averaged():
    """The sum over the images has the gradient of each, except where statistics couple them."""
    x = images(16, batch=4)
    variables = Net().init(jax.random.key(0), x)
    halves = [(x[:2], jnp.zeros(2)), (x[2:], jnp.zeros(2))]
    one, several = (
        effective_field(Net(), variables, each, layers="second") for each in (x, halves)
    )
    np.testing.assert_allclose(several.map, one.map, rtol=1e-5)
    ghosts, in_training = (
        effective_field(Net(), variables, each, layers="second", mode=mode)
        for each, mode in ((x, Ghost(2)), (halves, TRAIN))
    )
    np.testing.assert_allclose(ghosts.map, in_training.map, rtol=1e-6)
    assert np.abs(ghosts.map - one.map).max() > 1e-3


def test_a_pattern_selects_one_layer():
    x = images(16)
    variables = Net().init(jax.random.key(0), x)
    assert effective_field(Net(), variables, x, layers="fir*").layer == "first"
    with pytest.raises(
        InputError, match=r"layers is '\*', which selects 4 layers: first, norm, second, head; "
    ):
        effective_field(Net(), variables, x, layers="*")
    with pytest.raises(InputError, match="effective_field no longer takes layer=; use layers="):
        effective_field(Net(), variables, x, layer="first")


class Conditioned(nn.Module):
    """A mask and a time beside the image, by keyword."""

    @nn.compact
    def __call__(self, *, mask, picture, time):
        x = nn.Conv(2, (3, 3), name="conv")(picture * mask[..., None].astype(picture.dtype))
        return x * time[:, None, None, None]


def test_an_image_among_several_inputs():
    x = images(9, batch=2)
    batch = {"mask": jnp.ones((2, 9, 9), jnp.int32), "picture": x, "time": jnp.array([1.0, 3.0])}
    variables = Conditioned().init(jax.random.key(0), **batch)
    found = effective_field(Conditioned(), variables, batch)
    assert found.theoretical == (3, 3)
    kernel = np.asarray(variables["params"]["conv"]["kernel"])
    expected = np.abs(kernel.sum(-1)).mean(-1) * 2  # the mean of the times
    np.testing.assert_allclose(found.map[3:6, 3:6], expected, rtol=1e-5)


class Pair(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.second = (nnx.Conv(2, 2, (3, 3), rngs=rngs) for _ in range(2))

    def __call__(self, x):
        return self.second(self.first(x))


def test_an_nnx_module_and_a_function():
    module, x = Pair(), images(11, 2, batch=3)
    expected = jnp.abs(jax.grad(lambda x: module(x)[:, 5, 5].sum())(x)).mean((0, 3))
    inner = jnp.abs(jax.grad(lambda x: module.first(x)[:, 5, 5].sum())(x)).mean((0, 3))
    network, variables = from_nnx(module)
    for layers, wanted, size in ((None, expected, 5), ("first", inner, 3)):
        found = effective_field(network, variables, x, layers=layers)
        np.testing.assert_allclose(found.map, wanted, rtol=1e-4, atol=1e-7)
        assert found.theoretical == (size, size)

    def pair(kernels, x):
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x

    kernels = tuple(layer.kernel.get_value() for layer in (module.first, module.second))
    found = effective_field(from_function(pair), kernels, x)
    np.testing.assert_allclose(found.map, expected, rtol=1e-4, atol=1e-7)
    assert found.theoretical == (5, 5)
    assert "map" not in repr(found) and found.summary()["size"] == found.size
    assert found.plot(title="Mine").get_title("left") == "Mine"
    with pytest.raises(InputError, match="pair is a function, which has no layers"):
        effective_field(from_function(pair), kernels, x, layers="first")
