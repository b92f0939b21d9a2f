"""Mixup and CutMix on the device: mixtures of two images and of their targets."""

import jax.numpy as jnp
from jax import Array, lax, random


def mixup_or_cutmix(
    key: Array, images: Array, targets: Array, mixup: float, cutmix: float, axis: str | None = None
) -> tuple[Array, Array]:
    """Mixup or CutMix by their strengths (0: off), with probability 1/2 each where both are on.

    images: (batch, height, width, channels) floats, targets: (batch, classes) -> the same shapes.
    The partner of an image is the one at the mirrored place in the batch, whose order is random
    already. axis: of pmap, where the images are one device's slice and the key is the same on all
    devices; the partner is then on the mirrored device.
    """
    if not (mixup or cutmix):
        return images, targets
    ratio_key, box_key, choice_key = random.split(key, 3)
    strength = jnp.asarray(mixup or cutmix, jnp.float32)
    cuts = jnp.asarray(not mixup)
    if mixup and cutmix:
        cuts = random.bernoulli(choice_key, 0.5)
        strength = jnp.where(cuts, cutmix, strength)
    ratio = random.beta(ratio_key, strength, strength, dtype=jnp.float32)
    box = cutmix_box(box_key, images.shape[1], images.shape[2], 1.0 - ratio)
    weights = jnp.where(cuts, jnp.where(box, 0.0, 1.0), ratio)[None, :, :, None].astype(
        images.dtype
    )
    kept = jnp.where(cuts, 1.0 - jnp.mean(box.astype(jnp.float32)), ratio)
    partners, partner_targets = _mirrored(images, axis), _mirrored(targets, axis)
    return weights * images + (1 - weights) * partners, kept * targets + (
        1.0 - kept
    ) * partner_targets


def _mirrored(leaf: Array, axis: str | None) -> Array:
    """The global batch in reverse order; under pmap, one device's slice of it."""
    if axis is None:
        return leaf[::-1]
    count = lax.axis_size(axis)
    return lax.ppermute(leaf[::-1], axis, [(device, count - 1 - device) for device in range(count)])


def cutmix_box(key: Array, height: int, width: int, area: Array) -> Array:
    """A box with that fraction of the area around a random pixel, clipped at the edges.

    Yun et al. 2019, arXiv:1905.04899, eq. 2. area: scalar in [0, 1] -> (height, width) bools.
    """
    side = jnp.sqrt(area)
    down, right = random.split(key)
    rows = _span(random.randint(down, (), 0, height), height, side)
    columns = _span(random.randint(right, (), 0, width), width, side)
    return rows[:, None] & columns[None, :]


def _span(centre: Array, size: int, fraction: Array) -> Array:
    """Mask of an axis within fraction * size / 2 of the centre."""
    half = jnp.floor(fraction * size / 2.0)
    apart = (jnp.arange(size) - centre).astype(jnp.float32)
    return (apart >= -half) & (apart < half)
