"""Decode photographs, completely or cropped: bitwise as Pillow does, or faster with OpenCV.

The header is checked against a maximum number of pixels before any pixel is decoded. Every image
(grey, CMYK, palette, a PNG named JPEG) becomes RGB as by Pillow's `convert("RGB")`; EXIF
orientation is ignored, as by torchvision's loader, on which published errors rest. 16-bit grey is
refused: Pillow clips its values at 255.
"""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from deepjax.data.image.crops import Box
from deepjax.data.image.fixed_size import FORMATS, check_end_marker
from deepjax.errors import InputError

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # Pillow's: 89 million, 256 MiB as RGB
# modes of more than 8 bits, of which Pillow makes RGB by cutting all above 255
_MODES_ABOVE_8_BITS = (
    "I",
    "I;16",
    "I;16B",
    "F",
)

CropFn = Callable[[int, int], Box]  # (height, width) -> what is cut


def decode_rgb(encoded: bytes) -> np.ndarray:
    """Decode an image -> (height, width, 3) uint8, as Pillow does.

    Raises ValueError above the maximum number of pixels, Pillow's errors for a corrupt image.
    """
    with open_image(encoded) as image:
        return np.array(image.convert("RGB"))


def decode_crop(encoded: bytes, crop_fn: CropFn, size: int, exact: bool = True) -> np.ndarray:
    """Decode a box of an image, scaled to (size, size, 3) uint8.

    crop_fn: (height, width) of the image -> the box. exact: bilinear with antialiasing, bitwise as
    torchvision does it with Pillow. Otherwise by OpenCV, if it can: decoded at 1/2, 1/4 or 1/8 of
    the size where the box stays at least as large as `size`, then bilinear without antialiasing, on
    integer pixels. Raises ValueError above the maximum number of pixels, Pillow's errors for a
    corrupt image.
    """
    with open_image(encoded) as image:
        box = crop_fn(image.height, image.width)
        if not exact and (pixels := _fast(encoded, image, box, size)) is not None:
            return pixels
        return _exact(image.convert("RGB"), box, size)


def open_image(encoded: bytes) -> Image.Image:
    """An image whose header is read.

    Raises ValueError above the maximum number of pixels, for what is neither JPEG nor PNG, for a
    JPEG without an end marker, whose missing part decoders may fill, and for 16-bit grey.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.UnidentifiedImageError as error:  # which names an object in memory
        raise ValueError("neither a JPEG nor a PNG") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.height} x {image.width} pixels; allowed: {MAX_PIXELS}")
    check_end_marker(image, encoded)
    if image.mode in _MODES_ABOVE_8_BITS:
        raise ValueError(f"image of mode {image.mode}, 16 bits or more; allowed: 8 bits a channel")
    return image


def _exact(image: Image.Image, box: Box, size: int) -> np.ndarray:
    if box.scaled:
        if box.scaled[0] * box.scaled[1] > MAX_PIXELS:
            raise ValueError(
                f"{box.scaled[0]} x {box.scaled[1]} pixels when scaled; allowed: {MAX_PIXELS}"
            )
        image = image.resize((box.scaled[1], box.scaled[0]), Image.Resampling.BILINEAR)
    return np.array(image.crop(box.edges).resize((size, size), Image.Resampling.BILINEAR))


def _fast(encoded: bytes, image: Image.Image, box: Box, size: int) -> np.ndarray | None:
    """The same by OpenCV. None for what only Pillow handles: no JPEG, or four colours."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    cv2 = opencv()
    top, left, height, width = box.sides(image.height, image.width)
    shrunk = max(by for by in (1, 2, 4, 8) if by == 1 or min(height, width) >= by * size)
    reduced = {1: 0, 2: 16, 4: 32, 8: 64}[shrunk]  # the bits that cv2.IMREAD_REDUCED_* share
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | reduced
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if pixels is None or pixels.shape != (-(-image.height // shrunk), -(-image.width // shrunk), 3):
        return None
    rows, columns = (
        _span(top, height, shrunk, pixels.shape[0]),
        _span(left, width, shrunk, pixels.shape[1]),
    )
    return cv2.resize(pixels[rows, columns], (size, size), interpolation=cv2.INTER_LINEAR)


def _span(start: float, length: float, shrunk: int, extent: int) -> slice:
    """The nearest integer pixels of the decoded image, at least one."""
    first = min(round(start / shrunk), extent - 1)
    return slice(first, max(first + 1, min(round((start + length) / shrunk), extent)))


@functools.cache
def opencv() -> Any:
    """OpenCV, with one thread per image, as the threads are ours.

    Raises InputError where it cannot be imported.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"OpenCV cannot be imported ({error}); install it anew, "
            "or set resize_backend='pillow' in a new run"
        ) from error

    cv2.setNumThreads(1)
    return cv2
