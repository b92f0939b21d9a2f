"""Convolutions in a backend's form against XLA's own, with their gradients."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from deepjax.analysis import count_macs, receptive_fields
from deepjax.backend.lowering import reference_lowering
from deepjax.models import create_model
from deepjax.models.layers.conv_lowering import convolve

LAYOUT = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def equal_with_gradients(x, kernel, strides, padding, tolerance=1e-5):
    def total(function, x, kernel):
        y = function(x, kernel, strides, padding, **LAYOUT).astype(jnp.float32)
        return jnp.sum(jnp.sin(y)), y

    def found(function):
        (_, y), gradients = jax.value_and_grad(
            lambda x, kernel: total(function, x, kernel), (0, 1), has_aux=True
        )(x, kernel)
        return y, *gradients

    for ours, theirs in zip(found(convolve), found(lax.conv_general_dilated), strict=True):
        apart = jnp.linalg.norm((ours - theirs).astype(jnp.float32)) / jnp.linalg.norm(
            theirs.astype(jnp.float32)
        )
        assert ours.shape == theirs.shape
        assert apart < tolerance


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_product_on_a_cpu_for_maps_smaller_than_the_kernel(size):
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(5, size, size, 6), (3, 3, 6, 7)])
    )
    equal_with_gradients(x, kernel, (1, 1), ((1, 1), (1, 1)))


@pytest.mark.parametrize("size", [(16, 16), (17, 15), (9, 12)])
@pytest.mark.parametrize(
    ("rows", "columns", "padding"),
    [
        (7, 7, ((3, 3), (3, 3))),
        (3, 3, ((0, 0), (0, 0))),
        (3, 3, ((1, 1), (1, 1))),
        (2, 5, ((0, 1), (1, 2))),
        (1, 1, ((0, 0), (0, 0))),
    ],
)
@pytest.mark.parametrize("channels", [3, 4])
def test_blocks_of_pixels_on_a_gpu(monkeypatch, size, rows, columns, padding, channels):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jax.random.normal(jax.random.key(0), (2, *size, channels), jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (rows, columns, channels, 5), jnp.bfloat16)
    assert "16]" in str(
        jax.make_jaxpr(lambda *given: convolve(*given, (2, 2), padding, **LAYOUT))(x, kernel)
    )
    equal_with_gradients(x, kernel, (2, 2), padding, 1e-2)


@pytest.mark.parametrize(
    ("dtype", "strides", "channels", "options"),
    [
        (jnp.float32, (2, 2), 3, {}),
        (jnp.bfloat16, (1, 1), 3, {}),
        (jnp.bfloat16, (2, 1), 3, {}),
        (jnp.bfloat16, (2, 2), 8, {}),
        (jnp.bfloat16, (2, 2), 3, {"rhs_dilation": (2, 2)}),
        (jnp.bfloat16, (2, 2), 3, {"feature_group_count": 3}),
    ],
)
def test_other_convolutions_on_a_gpu_stay_as_they_are(
    monkeypatch, dtype, strides, channels, options
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    inputs = channels // options.get("feature_group_count", 1)
    arrays = jnp.ones((1, 16, 16, channels), dtype), jnp.ones((3, 3, inputs, 6), dtype)

    def text(function):
        return str(
            jax.make_jaxpr(
                lambda *given: function(*given, strides, ((1, 1), (1, 1)), **LAYOUT, **options)
            )(*arrays)
        )

    assert text(convolve) == text(lax.conv_general_dilated)


def test_what_reads_a_network_sees_the_convolutions_that_are_written(monkeypatch):
    """Counts and receptive fields on every backend.

    Outside of `reference_lowering` the backend's form.
    """
    kernel = jnp.ones((7, 7, 3, 8), jnp.bfloat16)

    def stem(images):
        return convolve(images.astype(jnp.bfloat16), kernel, (2, 2), ((3, 3), (3, 3)), **LAYOUT)

    for backend in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        jax.clear_caches()  # traced for another backend
        # what was traced before within is not taken for what is traced outside, nor the other way
        # round
        jitted = jax.jit(stem)

        def in_blocks(jitted=jitted):
            return "4,4,16,8" in str(jax.make_jaxpr(jitted)(jnp.zeros((1, 64, 64, 3))))

        # as torchvision's counts
        assert (
            count_macs(create_model("resnet50", dtype=jnp.bfloat16), (224, 224, 3)) == 4_089_184_256
        )
        assert in_blocks() == (backend == "gpu")
        assert receptive_fields(jitted, (64, 64, 3)).size == (7, 7)
        assert in_blocks() == (backend == "gpu")
        with reference_lowering():
            assert not in_blocks()
