"""The solution by construction: equal outputs, and what it takes for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.models import create_model
from deepjax.study.identity_layers import stage_moments, with_identities, with_random_layers

BLOCKS = {8: 1, 14: 2}


@pytest.fixture(scope="module")
def networks():
    """Plain networks of 8 and 14 layers with perturbed variables, as after training; and images."""
    models = {
        depth: create_model("cifar_plain20", stages=(blocks,) * 3, width=4)
        for depth, blocks in BLOCKS.items()
    }
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    variables = {
        depth: jax.jit(model.init)(jax.random.key(depth), images) for depth, model in models.items()
    }
    rng = np.random.default_rng(0)

    def vary(leaf):
        return leaf * jnp.asarray(rng.uniform(0.8, 1.4, leaf.shape), jnp.float32)

    return models, {depth: jax.tree.map(vary, each) for depth, each in variables.items()}, images


def test_a_deeper_network_computes_the_same(networks):
    models, variables, images = networks
    deeper = with_identities(
        variables[8], stage_moments(models[8], variables[8], images), BLOCKS[14]
    )
    assert jax.tree.map(jnp.shape, deeper) == jax.tree.map(jnp.shape, dict(variables[14]))
    shallow, deep = models[8].apply(variables[8], images), models[14].apply(deeper, images)
    np.testing.assert_allclose(deep, shallow, atol=1e-5 * float(jnp.abs(shallow).max()))


def test_in_training_mode_it_does_on_the_images_of_the_moments_alone(networks):
    """With the images' own statistics stored; other images have other statistics."""
    models, variables, images = networks

    def logits(depth, given, x):
        return models[depth].apply(given, x, train=True, mutable=["batch_stats"])[0]

    forward = jax.jit(
        lambda given: models[8].apply(given, images, train=True, mutable=["batch_stats"])[1]
    )
    stored = dict(variables[8])
    for _ in range(100):  # the running statistics come to those of the images
        stored |= forward(stored)
    deeper = with_identities(stored, stage_moments(models[8], stored, images), BLOCKS[14])
    np.testing.assert_allclose(logits(14, deeper, images), logits(8, stored, images), atol=2e-3)
    others = images[:8] + 0.5
    assert float(jnp.abs(logits(14, deeper, others) - logits(8, stored, others)).max()) > 0.01


def test_other_layers_do_not(networks):
    models, variables, images = networks
    control = with_random_layers(variables[8], variables[14])
    name = "stage1_block2"
    assert (
        control["params"][name] is variables[14]["params"][name]
        and control["params"]["head"] is variables[8]["params"]["head"]
    )
    gap = models[14].apply(control, images) - models[8].apply(variables[8], images)
    assert float(jnp.abs(gap).max()) > 0.05
