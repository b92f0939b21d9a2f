"""Inputs that look like images in another scale or layout are warned of, and others are not."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import trace
from deepjax.analysis.network.image_scale import warn_of_images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (PIXELS, "pixels that were not normalised"),
        (jnp.asarray(PIXELS), "pixels that were not normalised"),
        # Resized or blended: no longer whole numbers.
        (PIXELS * 0.9 + 0.1, "pixels that were not normalised"),
        (np.round(PIXELS[..., :1] / 16), "pixels that were not normalised"),  # the digits reach 16
        (
            PIXELS.transpose(0, 3, 1, 2) / 255,
            r"\(2, 3, 8, 8\) look like \(batch, channels, height, width\)",
        ),
    ],
)
def test_what_looks_like_a_mistake_is_said(images, words):
    with pytest.warns(UserWarning, match=words):
        warn_of_images((images,))


@pytest.mark.parametrize(
    "images",
    [
        (PIXELS - 127.5) / 127.5,
        PIXELS / 255,
        np.zeros((2, 8, 8, 3), np.float32),
        np.ones((2, 8, 8, 3), np.float32),
        PIXELS[..., :2],  # two channels: features, not colours
        PIXELS[:, 0],
        np.zeros((2, 4, 4, 4), np.float32),
        np.zeros((0, 8, 8, 3), np.float32),
        jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32),
    ],
    ids=lambda images: str(images.shape),
)
def test_what_may_be_meant_is_not(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_images((images,))


def test_a_value_at_hand_is_judged_while_a_function_around_is_traced():
    images = jnp.asarray(PIXELS)
    with pytest.warns(UserWarning, match="not normalised"):
        jax.make_jaxpr(lambda x: warn_of_images((images, x)))(1.0)


def test_instruments_warn():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.mean((1, 2)))

    labels = jnp.zeros(2, jnp.int32)
    variables = Net().init(jax.random.key(0), PIXELS)
    with pytest.warns(UserWarning, match="not normalised"):
        trace(Net(), variables, (PIXELS, labels))


def test_images_on_one_device_under_a_mesh_of_several():
    """As in the probe of a run on several devices, whose sample lies on the first."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.warns(UserWarning, match="not normalised"):
        warn_of_images((jax.device_put(PIXELS, jax.devices()[0]),))
