"""Each operation of RandAugment against Pillow's own, on photographs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from deepjax.data.augment.operations import OPERATIONS, apply_operations
from tests.data.photographs import photograph

PHOTOGRAPHS = [
    np.asarray(Image.fromarray(photograph(name)).resize((80, 64)))
    for name in ("china", "flower", "hopper")
]
FILL = (124, 116, 104)


def affine(*matrix):
    return lambda image, value: image.transform(
        image.size,
        Image.Transform.AFFINE,
        [term(value) for term in matrix],
        Image.Resampling.BILINEAR,
        fillcolor=fill_of(image),
    )


def fill_of(image):
    return FILL if image.mode == "RGB" else FILL[0]


def one(value):
    return 1


def nothing(value):
    return 0


def itself(value):
    return value


def brighter_below_the_middle(image, value):
    table = [min(255, level + int(value)) if level < 128 else level for level in range(256)]
    return image.point(table * len(image.getbands()))


PILLOW = {
    "identity": (lambda image, value: image, [0.0]),
    "rotate": (
        lambda image, value: image.rotate(
            value, Image.Resampling.BILINEAR, fillcolor=fill_of(image)
        ),
        [-135.0, -21.0, 7.5, 30.0],
    ),
    "shear_x": (affine(one, itself, nothing, nothing, one, nothing), [-0.99, -0.21, 0.3]),
    "shear_y": (affine(one, nothing, nothing, itself, one, nothing), [-0.99, -0.21, 0.3]),
    "translate_x": (affine(one, nothing, itself, nothing, one, nothing), [-32.0, 12.6, 36.0]),
    "translate_y": (affine(one, nothing, nothing, nothing, one, itself), [-32.0, 12.6, 28.8]),
    "posterize": (lambda image, value: ImageOps.posterize(image, int(value)), [1.0, 2.0, 4.0, 8.0]),
    "solarize": (ImageOps.solarize, [0.0, 76.0, 127.5, 256.0]),
    "solarize_add": (brighter_below_the_middle, [0.0, 77.0, 110.0]),
    "invert": (lambda image, value: ImageOps.invert(image), [0.0]),
    "brightness": (
        lambda image, value: ImageEnhance.Brightness(image).enhance(value),
        [0.1, 0.37, 1.0, 1.9],
    ),
    "contrast": (
        lambda image, value: ImageEnhance.Contrast(image).enhance(value),
        [0.1, 0.37, 1.0, 1.9],
    ),
    "auto_contrast": (lambda image, value: ImageOps.autocontrast(image), [0.0]),
    "equalize": (lambda image, value: ImageOps.equalize(image), [0.0]),
    "color": (lambda image, value: ImageEnhance.Color(image).enhance(value), [0.1, 0.37, 1.0, 1.9]),
    "sharpness": (
        lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
        [0.1, 0.37, 1.0, 1.9],
    ),
}
CASES = [(name, value) for name, (_, values) in PILLOW.items() for value in values]
# at the rim float32 and doubles may differ in what is inside
MOVED = (
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def squeezed(pixels):
    """Half of the grey levels, so that there is something to stretch."""
    return (40 + pixels // 2).astype(np.uint8)


INPUTS = {
    "colours": np.stack([squeezed(pixels) for pixels in PHOTOGRAPHS]),
    "grey": np.stack(
        [
            np.asarray(Image.fromarray(squeezed(pixels)).convert("L"))[:, :, None]
            for pixels in PHOTOGRAPHS
        ]
    ),
}


@pytest.fixture(scope="module", params=INPUTS)
def ours(request):
    """The photographs, and what becomes of them in all cases.

    (cases, photographs, height, width, channels).
    """
    images = INPUTS[request.param]
    fill = jnp.asarray(FILL[: images.shape[-1]], jnp.uint8)
    operations = jnp.asarray([OPERATIONS.index(name) for name, _ in CASES for _ in images])
    arguments = jnp.asarray([value for _, value in CASES for _ in images], jnp.float32)
    changed = jax.jit(apply_operations)(
        np.concatenate([images] * len(CASES)), operations, arguments, fill
    )
    return images, np.asarray(changed).reshape(len(CASES), *images.shape)


@pytest.mark.parametrize(
    "case", range(len(CASES)), ids=[f"{name}-{value:g}" for name, value in CASES]
)
def test_an_operation_is_pillow_s(ours, case):
    name, value = CASES[case]
    for before, after in zip(ours[0], ours[1][case], strict=True):
        image = Image.fromarray(before if before.shape[2] == 3 else before[:, :, 0])
        expected = np.asarray(PILLOW[name][0](image, value)).reshape(before.shape)
        apart = np.abs(after.astype(int) - expected)
        assert np.mean(np.max(apart, axis=2) > 1) <= (0.002 if name in MOVED else 0)
        assert np.mean(apart) < 0.2


def test_all_operations_are_tested():
    assert set(PILLOW) == set(OPERATIONS)


def test_a_flat_image_stays_flat():
    """Nothing to stretch or to equalise: Pillow leaves it as it is."""
    flat = np.full((2, 8, 8, 3), 77, np.uint8)
    places = jnp.asarray([OPERATIONS.index("auto_contrast"), OPERATIONS.index("equalize")])
    changed = jax.jit(apply_operations)(flat, places, jnp.zeros(2), jnp.zeros(3, jnp.uint8))
    np.testing.assert_array_equal(changed, flat)
