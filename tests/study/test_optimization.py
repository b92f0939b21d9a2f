"""Harder to optimise, not less able: the measurements on surfaces that are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from deepjax.models import create_model
from deepjax.study.networks import Stack
from experiments.optimization import negative_curvature, random_plane, scanned


@pytest.fixture(scope="module")
def batch():
    """Images of noise, labelled by their mean."""
    images = jax.random.normal(jax.random.key(0), (32, 4, 4, 1))
    return {"image": images, "label": (images.mean((1, 2, 3)) > 0).astype(int)}


def test_the_loss_of_a_linear_classifier_is_convex(batch):
    model = Stack(())
    variables = model.init(jax.random.key(1), batch["image"])
    assert negative_curvature(model, variables, batch, seed=0, steps=10) < 1e-4
    assert random_plane(model, variables, batch, seed=0, points=5).concave_fraction == 0


def test_the_ratio_is_that_of_the_eigenvalues_of_the_whole_hessian(batch):
    model = Stack((3,), width=2, norm=False)
    params = model.init(jax.random.key(1), batch["image"])["params"]
    flat, tree = ravel_pytree(params)

    def loss(vector):
        logits: Any = model.apply({"params": tree(vector)}, batch["image"])
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(32), batch["label"]])

    values = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(flat))
    assert values[0] < 0
    found = negative_curvature(model, {"params": params}, batch, seed=0, steps=40)
    assert found == pytest.approx(-values[0] / values[-1], rel=1e-3)


def test_the_network_with_scanned_blocks_has_the_same_outputs(batch):
    model = create_model("cifar_plain20", stages=(2, 2, 2), width=2)
    variables = jax.jit(model.init)(jax.random.key(1), batch["image"])
    again, stacked = scanned(model, variables)
    expected: Any = model.apply(variables, batch["image"])
    found: Any = again.apply(stacked, batch["image"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
