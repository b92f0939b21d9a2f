"""Augmentation against brute force, and where it must leave images alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.data import dataset_info
from deepjax.data.augment.basic import augment, normalize, random_crop, random_flip

IMAGES = jax.random.randint(jax.random.key(0), (64, 6, 5, 3), 1, 256).astype(jnp.uint8)


def test_a_crop_is_a_window_of_the_padded_image():
    cropped = np.asarray(random_crop(jax.random.key(1), IMAGES, 2))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = []
    for image, out in zip(padded, cropped, strict=True):
        found = [
            (r, c)
            for r in range(5)
            for c in range(5)
            if np.array_equal(image[r : r + 6, c : c + 5], out)
        ]
        assert len(found) == 1
        places += found
    assert len(set(places)) > 15  # of 25 windows


def test_a_flip_mirrors_about_half_of_the_images():
    flipped = np.asarray(random_flip(jax.random.key(2), IMAGES))
    same = [np.array_equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)]
    mirrored = [
        np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, np.asarray(IMAGES), strict=True)
    ]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 16 <= sum(mirrored) <= 48


@pytest.mark.parametrize(
    ("name", "flips"),
    [
        ("digits", False),
        ("svhn_cropped", False),
        ("cifar10", True),
        ("fashion_mnist", True),
        ("fashion_mnist_small", True),
    ],
)
def test_only_data_sets_whose_classes_survive_it_are_flipped(name, flips):
    dataset = dataset_info(name)
    # Columns that grow to the right: after any crop they still do, after a flip they fall.
    column = jnp.arange(1, dataset.shape[1] + 1, dtype=jnp.uint8)
    images = jnp.broadcast_to(column[None, None, :, None], (64, *dataset.shape))
    middle = np.asarray(augment(jax.random.key(3), images, dataset))[
        :, dataset.shape[0] // 2, :, 0
    ].astype(int)
    centre = dataset.shape[1] // 2
    falling = middle[:, centre] > middle[:, centre + 1]
    assert falling.any() == flips


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_normalized_images_are_float32_with_the_catalog_s_statistics(name):
    dataset = dataset_info(name)
    images = jnp.full((2, *dataset.shape), 7, jnp.uint8)
    out = normalize(images, dataset)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(
        out[0, 0, 0], (7 - np.asarray(dataset.mean)) / np.asarray(dataset.std), rtol=1e-5
    )
