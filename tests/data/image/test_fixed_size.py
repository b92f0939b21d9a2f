"""Decoding one image: every pixel of a good one, and nothing of a bad one."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from deepjax.data.image.fixed_size import decode_fixed_size
from deepjax.errors import InputError

GRAY = np.arange(20, dtype=np.uint8).reshape(5, 4)
COLOR = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims that many grey pixels (PNG specification 11.2.2)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    claim = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", claim) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize("pixels", [GRAY, COLOR])
def test_every_pixel_of_a_png(pixels):
    shape = (5, 4, 1 if pixels is GRAY else 3)
    decoded = decode_fixed_size(encode(Image.fromarray(pixels)), shape)
    assert decoded.shape == shape and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels.reshape(shape))


def test_a_jpeg_of_one_colour():
    """A constant block has one coefficient.

    At quality 100 it is stored exactly (JPEG, ITU-T T.81, A.3).
    """
    file = io.BytesIO()
    Image.new("L", (8, 8), 77).save(file, "JPEG", quality=100)
    np.testing.assert_array_equal(decode_fixed_size(file.getvalue(), (8, 8, 1)), 77)


@pytest.mark.parametrize("side", [5, 2**13 + 1, 12_000, 65_535])
def test_what_a_header_claims_is_refused_before_a_pixel_is_decoded(side, monkeypatch):
    """12,000 a side is where Pillow only warns, and 65,535 where it refuses."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(
        (InputError, Image.DecompressionBombError),
        match=rf"\({side}, {side}, 1\), expected|decompression bomb",
    ):
        decode_fixed_size(png_header(side, side), (8, 8, 1))


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("RGB", r"\(5, 4, 3\)"),
        ("RGBA", r"\(5, 4, 4\)"),
        ("P", "in mode P"),
        ("I;16", "in mode I;16"),
        ("1", "in mode 1"),
    ],
)
def test_another_kind_of_pixel_is_refused(mode, said):
    with pytest.raises(InputError, match=rf"image has shape .*{said}, expected \(5, 4, 1\)"):
        decode_fixed_size(encode(Image.new(mode, (4, 5))), (5, 4, 1))


@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_another_format_is_not_opened(form):
    with pytest.raises(Image.UnidentifiedImageError):
        decode_fixed_size(encode(Image.fromarray(GRAY), form), (5, 4, 1))


def test_an_image_cut_short_is_an_error():
    whole = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)))
    with pytest.raises((OSError, SyntaxError)):
        decode_fixed_size(whole[: len(whole) // 2], (64, 64, 1))
