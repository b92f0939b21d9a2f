"""The operations of RandAugment on the device, one per image of a batch: uint8 in, uint8 out.

Under vmap a switch computes all branches, so there is none: each operation is a setting of one of
three families (a warp, a lookup table of grey levels, a blend), and the others leave the image
bitwise unchanged. The arithmetic is Pillow's, rounding included.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

# (name, neutral value) -> the argument where the image's operation has that name, else the neutral
ArgumentOr = Callable[[str, float], Array]
OPERATIONS = (
    "identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y",
    "posterize", "solarize", "solarize_add", "invert", "brightness", "contrast", "auto_contrast",
    "equalize", "color", "sharpness",
)  # fmt: skip


def apply_operations(images: Array, operation: Array, argument: Array, fill: Array) -> Array:
    """Apply to each image its own operation.

    images: (batch, height, width, 1 or 3) uint8; operation: (batch,) indices into OPERATIONS;
    argument: (batch,) floats: degrees (rotate), shift of a row or column per pixel of distance
    (shear), pixels (translate), bits kept (posterize), the first inverted level (solarize), levels
    (solarize_add), or the factor of Pillow's ImageEnhance (brightness, contrast, color, sharpness);
    fill: (channels,) uint8, the colour outside the image.
    """
    # Without the barriers XLA would recompute the warp for each sum over the image, and the levels
    # for each neighbour.

    def of_one(image: Array, operation: Array, argument: Array) -> Array:
        def given(name: str, otherwise: float) -> Array:
            return jnp.where(operation == OPERATIONS.index(name), argument, otherwise)

        image = lax.optimization_barrier(_warp(image, _matrix(given, image.shape), fill))
        table = _table(image, given, operation)
        levels = image.reshape(-1, image.shape[2])
        image = lax.optimization_barrier(
            jnp.take_along_axis(table, levels, axis=0, mode="promise_in_bounds").reshape(
                image.shape
            )
        )
        image = _blend(
            jnp.broadcast_to(_grey(image)[:, :, None], image.shape), image, given("color", 1.0)
        )
        return _blend(_smooth(image), image, given("sharpness", 1.0))

    return jax.vmap(of_one)(images, operation, argument)


def _matrix(given: ArgumentOr, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The affine map from output to input pixels: (a x + b y + c, d x + e y + f), in this order."""
    middle_y, middle_x = shape[0] / 2, shape[1] / 2
    angle = -jnp.deg2rad(given("rotate", 0.0))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    c = middle_x - cos * middle_x - sin * middle_y + given("translate_x", 0.0)
    f = middle_y + sin * middle_x - cos * middle_y + given("translate_y", 0.0)
    return cos, sin + given("shear_x", 0.0), c, given("shear_y", 0.0) - sin, cos, f


def _warp(image: Array, matrix: tuple[Array, ...], fill: Array) -> Array:
    """The image sampled at the places that a matrix gives, with bilinear interpolation."""
    a, b, c, d, e, f = matrix
    height, width, _ = image.shape
    y, x = (
        jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5,
        jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5,
    )
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    x_weight, y_weight = (from_x - 0.5 - left)[:, :, None], (from_y - 0.5 - top)[:, :, None]

    def at(row: Array, column: Array) -> Array:
        rows, columns = (
            jnp.clip(v.astype(jnp.int32), 0, n - 1) for v, n in ((row, height), (column, width))
        )
        return image.at[rows, columns].get(mode="promise_in_bounds").astype(jnp.float32)

    upper = at(top, left) + (at(top, left + 1) - at(top, left)) * x_weight
    lower = at(top + 1, left) + (at(top + 1, left + 1) - at(top + 1, left)) * x_weight
    return jnp.where(
        inside[:, :, None],
        (upper + (lower - upper) * y_weight).astype(jnp.uint8),
        fill[None, None, :],
    )


def _table(image: Array, given: ArgumentOr, operation: Array) -> Array:
    """Lookup table for each grey level of each channel: (256, channels) uint8."""
    level = jnp.arange(256)[:, None]
    name = {name: operation == place for place, name in enumerate(OPERATIONS)}
    dropped = (1 << (8 - given("posterize", 8.0).astype(jnp.int32))) - 1
    table = level & ~dropped
    table = jnp.where(level.astype(jnp.float32) < given("solarize", 256.0), table, 255 - table)
    table = jnp.where(
        level < 128, jnp.minimum(table + given("solarize_add", 0.0).astype(jnp.int32), 255), table
    )
    table = jnp.where(name["invert"], 255 - table, table)
    table = _blend(jnp.zeros_like(level), table, given("brightness", 1.0))
    middle = jnp.floor(jnp.mean(_grey(image).astype(jnp.float32)) + 0.5)
    table = _blend(jnp.full(table.shape, middle), table, given("contrast", 1.0))
    table = jnp.broadcast_to(table, (256, image.shape[2]))
    table = jnp.where(name["auto_contrast"], _stretched(image), table)
    return jnp.where(name["equalize"], _equalized(image), table)


def _stretched(image: Array) -> Array:
    """Lookup table of auto-contrast: each channel is stretched to 0 to 255. (256, channels)."""
    low, high = (of(image, axis=(0, 1)).astype(jnp.int32)[None, :] for of in (jnp.min, jnp.max))
    level = jnp.arange(256)[:, None]
    spread = jnp.clip((level - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, spread, level).astype(jnp.uint8)


def _equalized(image: Array) -> Array:
    """Lookup table of histogram equalisation. (256, channels)."""
    channels = image.shape[2]
    bins = image.astype(jnp.int32) + 256 * jnp.arange(channels)[None, None, :]
    counts = (
        jnp.zeros(256 * channels, jnp.int32)
        .at[bins.reshape(-1)]
        .add(1, mode="promise_in_bounds")
        .reshape(channels, 256)
        .T
    )
    highest = jnp.max(image, axis=(0, 1)).astype(jnp.int32)
    step = (image.shape[0] * image.shape[1] - counts[highest, jnp.arange(channels)])[None, :] // 255
    below = jnp.cumsum(counts, axis=0) - counts
    spread = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, spread, jnp.arange(256)[:, None]).astype(jnp.uint8)


def _grey(image: Array) -> Array:
    """Luminance (ITU-R 601, in Pillow's integer arithmetic) of an image: (height, width) uint8."""
    if image.shape[2] == 1:
        return image[:, :, 0]
    red, green, blue = (image[:, :, channel].astype(jnp.int32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(jnp.uint8)


def _smooth(image: Array) -> Array:
    """Pillow's SMOOTH filter: weight 5 for a pixel, 1 for each neighbour; the border is kept."""
    pixels = image.astype(jnp.int32)
    inner = sum(
        pixels[1 + y : y + image.shape[0] - 1, 1 + x : x + image.shape[1] - 1]
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    )
    smoothed = (2 * (inner + 4 * pixels[1:-1, 1:-1]) + 13) // 26
    return image.at[1:-1, 1:-1].set(smoothed.astype(jnp.uint8))


def _blend(zero: Array, one: Array, factor: Array) -> Array:
    """Blend, zero + factor * (one - zero), clipped to 0 to 255 and rounded down: uint8."""
    start = zero.astype(jnp.float32)
    blended = start + (one.astype(jnp.float32) - start) * factor
    return jnp.where(
        factor == 1.0, one.astype(jnp.uint8), jnp.clip(blended, 0.0, 255.0).astype(jnp.uint8)
    )
