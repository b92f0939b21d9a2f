"""VGG: the head as layers and as convolutions, sizes, initialisation, features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import create_model
from deepjax.errors import InputError
from deepjax.models import features
from deepjax.models.vgg import INITIALIZATION, FullyConnected
from tests.numpy_variables import numpy_variables


def model_and_variables(name: str = "vgg11", **fields):
    model = create_model(name, num_classes=5, width=4, **fields)
    return model, numpy_variables(model, (32, 32, 3))


def test_the_head_as_convolutions_is_equal_at_224_and_slides_above():
    model, variables = model_and_variables()
    dense = model.clone(head="conv")
    images = jax.random.normal(jax.random.key(1), (2, 288, 256, 3))
    crop = images[:, :224, :224]
    np.testing.assert_allclose(
        jax.jit(dense.apply)(variables, crop),
        jax.jit(model.apply)(variables, crop),
        rtol=1e-4,
        atol=1e-5,
    )
    assert dense.apply(variables, images).shape == (2, 5)


def test_the_dense_head_scores_every_window_as_the_layer_would():
    """A map of 8x7 holds two windows of 7x7 (section 3.2)."""
    maps = jax.random.normal(jax.random.key(1), (1, 8, 7, 32))
    layer = FullyConnected(5, 7, True, INITIALIZATION["glorot"], jnp.float32, jnp.float32)
    variables = layer.init(jax.random.key(0), maps)
    windows = layer.apply(variables, maps)
    assert windows.shape == (1, 2, 1, 5)
    for row in range(2):
        alone = layer.clone(slide=False).apply(variables, maps[:, row : row + 7])
        np.testing.assert_allclose(windows[:, row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("head", "size"), [("fc", 31), ("conv", 223)])
def test_images_that_are_too_small_are_named(head, size):
    model, variables = model_and_variables()
    with pytest.raises(InputError, match=f"images are {size}x{size} pixels"):
        jax.eval_shape(
            model.clone(head=head).apply,
            variables,
            jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        )


@pytest.mark.parametrize(
    ("scheme", "deviation"),
    [("paper", 0.1), ("torchvision", (2 / (9 * 512)) ** 0.5), ("glorot", (1 / (9 * 512)) ** 0.5)],
)
def test_initial_weights_have_the_stated_spread(scheme, deviation):
    """Section 3.1 has a variance of 0.01; torchvision fan out; Glorot 2 / (fan in + fan out)."""
    model = create_model("vgg11", num_classes=5, initialization=scheme)
    shape = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"][
        "stage5_conv2"
    ]["kernel"].shape
    kernel = INITIALIZATION[scheme].conv(jax.random.key(0), shape)
    assert float(jnp.std(kernel)) == pytest.approx(deviation, rel=0.01)
    assert abs(float(jnp.mean(kernel))) < 0.01 * deviation


def test_lrn_changes_the_output_and_no_parameter():
    model, variables = model_and_variables()
    images = 5 * jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    assert not np.allclose(
        model.apply(variables, images),
        model.clone(configuration="A-LRN").apply(variables, images),
        rtol=1e-3,
    )


def test_features_of_named_stages_in_one_call_under_jit():
    model, variables = model_and_variables()
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    every = features(model, variables, images)
    assert [stage.shape for stage in every.values()] == [
        (2, 16, 16, 4),
        (2, 8, 8, 8),
        (2, 4, 4, 16),
        (2, 2, 2, 32),
        (2, 1, 1, 32),
        (2, 4 * 64),
    ]
    head = variables["params"]["head_fc8"]
    logits = every["pooled"] @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(logits, model.apply(variables, images), rtol=1e-5, atol=1e-6)
    some = jax.jit(lambda v, x: features(model, v, x, ["stage2"]))(variables, images)
    np.testing.assert_allclose(some["stage2"], every["stage2"], rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="stage of VGG 'stage6' is unknown; did you mean 'stage"):
        features(model, variables, images, ["stage6"])
    with pytest.raises(
        InputError, match=r"names is 'stage1'; allowed: a list of stages, such as \['stage1'\]"
    ):
        features(model, variables, images, "stage1")
