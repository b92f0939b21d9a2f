"""RandAugment and TrivialAugment on the device: uint8 in and out, pure functions of a key."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from deepjax.data.augment.basic import FULL_BATCH, BatchSlice
from deepjax.data.augment.operations import OPERATIONS, apply_operations

# timm's mstd0.5, p0.5 and the end of its scale
MAGNITUDE_STD, SKIP_PROBABILITY, MAX_MAGNITUDE = (
    0.5,
    0.5,
    10.0,
)
BINS = 30  # TrivialAugment's strengths are 0 to 30
RANDAUGMENT_OPS = [place for place, name in enumerate(OPERATIONS) if name != "identity"]
TRIVIALAUGMENT_OPS = [
    place for place, name in enumerate(OPERATIONS) if name not in ("solarize_add", "invert")
]


def rand_augment(
    key: Array,
    images: Array,
    fill: Array,
    operations: int = 2,
    magnitude: float = 9.0,
    batch_slice: BatchSlice = FULL_BATCH,
) -> Array:
    """RandAugment as timm's rand-m9-mstd0.5-inc1: `operations` of 15 per image, each with p = 1/2.

    images: (batch, height, width, 1 or 3) uint8; fill: (channels,) uint8, the data set's mean in
    timm; magnitude: 0 to 10, the mean of each operation's random magnitude (Cubuk et al. 2019,
    arXiv:1909.13719; timm's auto_augment.py, but always bilinear).
    """
    batch, *size, _ = images.shape
    shape = (batch * batch_slice.count, operations)
    of_place, of_doing, of_level, of_sign = random.split(key, 4)
    places = jnp.asarray(RANDAUGMENT_OPS)[random.randint(of_place, shape, 0, len(RANDAUGMENT_OPS))]
    places = jnp.where(
        random.bernoulli(of_doing, 1 - SKIP_PROBABILITY, shape),
        places,
        OPERATIONS.index("identity"),
    )
    level = jnp.clip(
        magnitude + MAGNITUDE_STD * random.normal(of_level, shape, jnp.float32), 0.0, MAX_MAGNITUDE
    )
    sign = random.rademacher(of_sign, shape, jnp.float32)
    sampled = batch_slice.select(jnp.stack([places.astype(jnp.float32), level, sign], axis=-1))

    def apply_one(images: Array, sampled: Array) -> tuple[Array, None]:
        places = sampled[:, 0].astype(jnp.int32)
        arguments = jax.vmap(lambda level, sign: randaugment_arguments(level, sign, size))(
            sampled[:, 1], sampled[:, 2]
        )
        return apply_operations(images, places, _select(arguments, places), fill), None

    return lax.scan(apply_one, images, jnp.swapaxes(sampled, 0, 1))[0]


def trivial_augment(key: Array, images: Array, batch_slice: BatchSlice = FULL_BATCH) -> Array:
    """TrivialAugment Wide as in torchvision: one of 14 operations per image, at a random strength.

    images: (batch, height, width, 1 or 3) uint8; outside is black (Mueller and Hutter 2021,
    arXiv:2103.10158).
    """
    shape = (images.shape[0] * batch_slice.count,)
    of_place, of_level, of_sign = random.split(key, 3)
    places = batch_slice.select(
        jnp.asarray(TRIVIALAUGMENT_OPS)[random.randint(of_place, shape, 0, len(TRIVIALAUGMENT_OPS))]
    )
    level = batch_slice.select(random.randint(of_level, shape, 0, BINS + 1).astype(jnp.float32))
    arguments = jax.vmap(trivialaugment_arguments)(
        level, batch_slice.select(random.rademacher(of_sign, shape, jnp.float32))
    )
    return apply_operations(
        images, places, _select(arguments, places), jnp.zeros(images.shape[-1], jnp.uint8)
    )


def randaugment_arguments(level: Array, sign: Array, size: Sequence[int]) -> Array:
    """The argument of each of OPERATIONS at a magnitude of 0 to 10 and a sign: (operations,).

    size: (height, width).
    """
    fraction = level / MAX_MAGNITUDE
    factor = jnp.maximum(0.1, 1.0 + sign * fraction * 0.9)
    return _in_order(
        rotate=sign * fraction * 30.0,
        shear_x=sign * fraction * 0.3,
        shear_y=sign * fraction * 0.3,
        translate_x=sign * fraction * 0.45 * size[1],
        translate_y=sign * fraction * 0.45 * size[0],
        posterize=4.0 - jnp.floor(fraction * 4.0),
        solarize=256.0 - jnp.floor(fraction * 256.0),
        solarize_add=jnp.floor(fraction * 110.0),
        brightness=factor,
        contrast=factor,
        color=factor,
        sharpness=factor,
    )


def trivialaugment_arguments(level: Array, sign: Array) -> Array:
    """The argument of each of OPERATIONS at a strength of 0 to 30 and a sign: (operations,)."""
    fraction = level / BINS
    factor = 1.0 + sign * fraction * 0.99
    return _in_order(
        rotate=sign * fraction * 135.0,
        shear_x=sign * fraction * 0.99,
        shear_y=sign * fraction * 0.99,
        translate_x=sign * jnp.floor(fraction * 32.0),
        translate_y=sign * jnp.floor(fraction * 32.0),
        posterize=8.0 - jnp.round(fraction * 6.0),
        solarize=255.0 - fraction * 255.0,
        brightness=factor,
        contrast=factor,
        color=factor,
        sharpness=factor,
    )


def _in_order(**arguments: Array) -> Array:
    """Arguments by name -> in the order of OPERATIONS; 0 for those that take none."""
    return jnp.stack([jnp.asarray(arguments.get(name, 0.0), jnp.float32) for name in OPERATIONS])


def _select(arguments: Array, places: Array) -> Array:
    """One number of each row. arguments: (batch, operations), places: (batch,) -> (batch,)."""
    return jnp.take_along_axis(arguments, places[:, None], axis=1)[:, 0]
