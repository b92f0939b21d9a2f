"""Decoding of photographs in every form: RGB as Pillow has it; the fast path near the exact one."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from deepjax.data.image import decode
from deepjax.data.image.crops import Box, Crops, centre_box, crop_numbers
from deepjax.data.image.decode import decode_crop, decode_rgb
from tests.data.photographs import DAMAGED, crops, jpeg, photograph, variants

WHOLE = [name for name in variants() if name not in DAMAGED]
STORED = photograph()[40:230, 60:310]  # what `variants` holds, all or a part of it
# How far a form may be from what was stored, in grey levels a pixel: JPEG of quality 90, a palette
# of 256, the grey of the colours.
APART = {"png": 0, "png_palette": 25, "cmyk": 6, "grey": 40} | dict.fromkeys(
    ("baseline", "tall", "wide", "pixel"), 6
)


@pytest.mark.parametrize("name", WHOLE)
def test_every_form_becomes_the_rgb_that_was_stored(name):
    """An orientation is ignored, as torchvision's loader ignores it."""
    rgb = decode_rgb(variants()[name])
    height, width, _ = rgb.shape
    assert rgb.dtype == np.uint8 and rgb.shape == {
        "tall": (190, 7, 3),
        "wide": (5, 250, 3),
        "pixel": (1, 1, 3),
    }.get(name, (190, 250, 3))
    apart = np.abs(rgb.astype(int) - (STORED[:height, :width] if name != "mirrored" else STORED))
    assert apart.mean() <= APART.get(name, 6)
    if name == "grey":
        np.testing.assert_array_equal(rgb[..., 0], rgb[..., 2])


@pytest.mark.parametrize("exact", [True, False])
def test_grey_of_16_bits_is_refused(exact):
    """Pillow's `convert` would make everything above 255 white, a 256th of the range aside."""
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 65_535, 40 * 30).reshape(30, 40).astype(np.uint16)).save(
        file, "PNG"
    )
    with pytest.raises(
        ValueError, match="image of mode I;16, 16 bits or more; allowed: 8 bits a channel"
    ):
        decode_crop(file.getvalue(), lambda h, w: Box(2, 3, 20, 20), 20, exact)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
@pytest.mark.parametrize("exact", [True, False])
def test_pngs_of_every_depth_become_what_pillow_converts_them_to(mode, exact):
    """Under whatever name they are stored."""
    grey = np.linspace(0, 255, 40 * 30).reshape(30, 40)
    file = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).convert(mode).save(file, "PNG")
    with Image.open(io.BytesIO(file.getvalue())) as reread:
        expected = np.asarray(reread.convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(file.getvalue()), expected)
    np.testing.assert_array_equal(
        decode_crop(file.getvalue(), lambda h, w: Box(2, 3, 20, 20), 20, exact),
        expected[2:22, 3:23],
    )


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("tall", "wide", "pixel")])
def test_without_scaling_the_fast_way_gives_the_same_bits(name):
    """Both hold libjpeg-turbo; forms that OpenCV would convert in another way go to Pillow."""
    encoded = variants()[name]
    for box in (Box(0, 0, 100, 100), Box(17, 33, 100, 100), Box(90, 150, 100, 100)):
        fast, exact = (
            decode_crop(encoded, lambda h, w, box=box: box, 100, exact) for exact in (False, True)
        )
        np.testing.assert_array_equal(fast, exact)


@pytest.mark.parametrize("name", ["tall", "wide", "pixel"])
@pytest.mark.parametrize("exact", [True, False])
def test_images_of_a_few_pixels(name, exact):
    for numbers in crop_numbers(0, 0, 20).tolist():
        cut_out = decode_crop(
            variants()[name], lambda h, w, n=numbers: Crops().box(n, h, w, 32), 32, exact
        )
        assert cut_out.shape == (32, 32, 3)
        assert np.abs(cut_out.mean((0, 1)) - decode_rgb(variants()[name]).mean((0, 1))).max() < 100


@pytest.mark.parametrize(("size", "most"), [(224, 1.5), (128, 3), (64, 5), (32, 7)])
def test_how_far_the_fast_way_is_from_the_exact_one(size, most):
    """Mean grey levels over crops of ImageNet's sizes.

    The less antialiasing is left to do, the nearer.
    """
    apart = []
    for image, numbers in zip(
        crops(12, seed=3, shortest=250, longest=600), crop_numbers(0, 0, 12).tolist(), strict=True
    ):
        encoded, box = jpeg(image), Crops().box(numbers, *image.shape[:2], size)
        fast, exact = (
            decode_crop(encoded, lambda h, w, box=box: box, size, exact).astype(int)
            for exact in (False, True)
        )
        apart.append(np.abs(fast - exact).mean())
    assert np.mean(apart) < most


@pytest.mark.parametrize("size", [20, 31, 32, 63, 64, 100])
def test_an_image_is_never_decoded_below_what_is_cut_from_it(size, monkeypatch):
    shapes = []

    class Watched:
        def __getattr__(self, name):
            value = getattr(real, name)
            return self.decode if name == "imdecode" else value

        def decode(self, *arguments):
            decoded = real.imdecode(*arguments)
            shapes.append(decoded.shape)
            return decoded

    real = decode.opencv()
    monkeypatch.setattr(decode, "opencv", Watched)
    encoded = jpeg(photograph()[:256, :256])
    for side in (256, 200, 128, 64, 20):
        decode_crop(encoded, lambda h, w, side=side: Box(0, 0, side, side), size, False)
        shrunk = 256 / shapes[-1][0]
        assert shrunk == 1 or side / shrunk >= size
        assert side / shrunk < 2 * size or shrunk == 8


@pytest.mark.parametrize("exact", [True, False])
def test_more_pixels_than_the_cap_are_refused_by_the_header(exact, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 190 * 250 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("pixels were decoded"))
    monkeypatch.setattr(decode, "opencv", lambda: pytest.fail("pixels were decoded"))
    with pytest.raises(ValueError, match="190 x 250 pixels; allowed: 47499"):
        decode_crop(variants()["baseline"], lambda h, w: Box(0, 0, 8, 8), 8, exact)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["baseline", "progressive", "restarts", "png"])
def test_an_image_cut_short_anywhere_is_damaged_either_way(name, exact):
    encoded = variants()[name]
    for share in np.linspace(0, 0.95, 25):
        with pytest.raises((OSError, SyntaxError, ValueError)):
            decode_crop(
                encoded[: int(share * len(encoded))], lambda h, w: Box(0, 0, h, w), 32, exact
            )


def test_a_line_of_pixels_is_not_scaled_to_a_wall_of_them():
    """65,000 x 1 pixels are few, but scaled to a shorter side of 256 they would be 4 billion."""
    line = jpeg(np.zeros((1, 65_000, 3), np.uint8))
    with pytest.raises(ValueError, match="256 x 16640000 pixels when scaled"):
        decode_crop(line, lambda h, w: centre_box(h, w, 224), 224)


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_image_is_damaged(name):
    with pytest.raises((OSError, SyntaxError, ValueError)):
        decode_rgb(variants()[name])


def test_what_pillow_decodes_is_never_a_decode_error():
    """Bits flipped anywhere: what OpenCV refuses goes to Pillow.

    The records' hashes find other flips.
    """
    rng = np.random.default_rng(0)
    for _ in range(150):
        encoded = bytearray(variants()["baseline"])
        encoded[rng.integers(len(encoded))] ^= 1 << int(rng.integers(8))
        assert damaged(bytes(encoded), True) or not damaged(bytes(encoded), False)


def damaged(encoded: bytes, exact: bool) -> bool:
    try:
        decode_crop(encoded, lambda h, w: Box(0, 0, h, w), 64, exact)
    except Exception:
        return True
    return False
