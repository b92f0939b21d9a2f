"""Random erasing on the device: a box of a normalised image is set to zero, the mean."""

import jax
import jax.numpy as jnp
from jax import Array, random

from deepjax.data.augment.basic import FULL_BATCH, BatchSlice

# Of the erased box: fraction of the image's area, and height / width.
AREA, RATIO = ((0.02, 0.33), (0.3, 3.3))
TRIES = 10


def random_erase(
    key: Array, images: Array, probability: float, batch_slice: BatchSlice = FULL_BATCH
) -> Array:
    """Erase a box of each image with a probability.

    images: (batch, height, width, channels), normalised floats. Zhong et al. 2017
    (arXiv:1708.04896) with torchvision's constants: 2 to 33 % of the area; the first of ten random
    boxes that fits into the image, or none.
    """
    batch, height, width, _ = images.shape
    total = batch * batch_slice.count
    of_which, of_box = random.split(key)
    erased = batch_slice.select(random.bernoulli(of_which, probability, (total,)))
    boxes = jax.vmap(lambda key: random_erasing_box(key, height, width))(
        batch_slice.select(random.split(of_box, total))
    )
    return jnp.where(
        (boxes & erased[:, None, None])[:, :, :, None], jnp.zeros((), images.dtype), images
    )


def random_erasing_box(key: Array, height: int, width: int) -> Array:
    """True in a random box inside an image: (height, width) bools; all False where no try fits."""
    of_area, of_ratio, of_place = random.split(key, 3)
    area = height * width * random.uniform(of_area, (TRIES,), jnp.float32, *AREA)
    ratio = jnp.exp(random.uniform(of_ratio, (TRIES,), jnp.float32, *jnp.log(jnp.asarray(RATIO))))
    rows, columns = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (rows < height) & (columns < width)
    first = jnp.argmax(fits)
    start = random.uniform(of_place, (2,), jnp.float32)
    down = _span(height, rows[first], start[0]) & fits[first]
    return down[:, None] & _span(width, columns[first], start[1])[None, :]


def _span(size: int, length: Array, start: Array) -> Array:
    """Mask of a stretch of an axis, placed anywhere it fits. start: in [0, 1)."""
    begin = jnp.floor(start * (size - length + 1.0))
    place = jnp.arange(size, dtype=jnp.float32)
    return (place >= begin) & (place < begin + length)
