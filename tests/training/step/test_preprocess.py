"""Preprocessing inside the train step, compared with NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.data import dataset_info
from deepjax.training.build import step_options
from deepjax.training.config import train_config
from deepjax.training.step.preprocess import preprocess_batch

# Without crops; its classes survive a flip.
CLOTHES = dataclasses.replace(dataset_info("fashion_mnist_small"), crop=0)


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_where_it_is_allowed(flip):
    images = np.random.default_rng(0).integers(256, size=(64, 14, 14, 1), dtype=np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.zeros(64, jnp.int32)}
    options = step_options(train_config("cifar_plain20", "fashion_mnist_small", flip=flip))
    found = np.asarray(preprocess_batch(jax.random.key(0), batch, CLOTHES, options)["image"])
    kept, mirrored = (
        np.isclose(found, (each - CLOTHES.mean[0]) / CLOTHES.std[0], atol=1e-5).all((1, 2, 3))
        for each in (images, images[:, :, ::-1])
    )
    assert (kept ^ mirrored).all()
    assert 16 < mirrored.sum() < 48 if flip else not mirrored.any()
