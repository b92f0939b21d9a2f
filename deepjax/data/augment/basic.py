"""Augmentation and normalisation on the device: uint8 in, float32 out, pure functions of a key."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, random

from deepjax.data.catalog import Dataset
from deepjax.errors import require


@dataclasses.dataclass(frozen=True)
class BatchSlice:
    """Which slice of the global batch the given images are.

    Random numbers are sampled for the global batch, so that slices on several devices are
    consistent.
    """

    index: Array | int = 0
    count: int = 1

    def select(self, numbers: Array) -> Array:
        """The rows of the given images. numbers: (global batch, ...)."""
        if self.count == 1:
            return numbers
        rows = numbers.shape[0] // self.count
        return jax.lax.dynamic_slice_in_dim(numbers, self.index * rows, rows)


FULL_BATCH = BatchSlice()


def random_crop(
    key: Array, images: Array, padding: int, batch_slice: BatchSlice = FULL_BATCH
) -> Array:
    """Pad every side with black and crop a random window of the old size, one for each image.

    images: (batch, height, width, channels), any dtype (He et al. 2015, section 4.2).
    """
    batch, height, width, channels = images.shape
    offsets = random.randint(key, (batch * batch_slice.count * 2,), 0, 2 * padding + 1).reshape(
        -1, 2
    )
    offsets = batch_slice.select(offsets)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def cut(image: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (height, width, channels))

    return jax.vmap(cut)(padded, offsets)


def random_flip(key: Array, images: Array, batch_slice: BatchSlice = FULL_BATCH) -> Array:
    """Mirror each image left to right with probability 1/2.

    images: (batch, height, width, channels).
    """
    flip = batch_slice.select(random.bernoulli(key, 0.5, (images.shape[0] * batch_slice.count,)))
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1, :], images)


def normalize(images: Array, dataset: Dataset) -> Array:
    """Subtract the mean and divide by the std of the data set. images: uint8 -> float32.

    Raises InputError for images of another number of channels.
    """
    channels = len(dataset.mean)  # one alone would be broadcast over three
    require(
        images.shape[-1] == channels,
        "images",
        images.shape,
        f"images of {channels} channels, as {dataset.name} has",
    )
    mean = jnp.asarray(dataset.mean, jnp.float32)
    std = jnp.asarray(dataset.std, jnp.float32)
    return (images.astype(jnp.float32) - mean[None, None, None, :]) / std[None, None, None, :]


def resize(images: Array, size: int | tuple[int, int]) -> Array:
    """Resize bilinearly, with antialiasing, to size x size pixels or (height, width); 0: unchanged.

    images: (batch, height, width, channels) floats.
    """
    batch, *old, channels = images.shape
    new = list(size if isinstance(size, tuple) else (size, size) if size else old)
    return images if new == old else jax.image.resize(images, (batch, *new, channels), "bilinear")


def augment(
    key: Array, images: Array, dataset: Dataset, batch_slice: BatchSlice = FULL_BATCH
) -> Array:
    """Random crop, and random flip where a mirrored image keeps its class.

    images: (batch, height, width, channels) uint8, as stored.
    """
    crop_key, flip_key = random.split(key)
    images = random_crop(crop_key, images, dataset.crop, batch_slice) if dataset.crop else images
    return random_flip(flip_key, images, batch_slice) if dataset.flip else images
