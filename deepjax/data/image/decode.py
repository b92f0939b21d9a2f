"""Encoded photographs to pixels: whole or a box of them, to Pillow's bit, or as fast as may be with OpenCV.

The header is held against a cap before a pixel is decoded. Whatever an image is stored as (grey, CMYK, a palette, PNG under
the name of a JPEG), it becomes RGB as Pillow's `convert("RGB")` has it; an orientation in EXIF is ignored. So does torchvision's
loader, on which published errors rest. Grey of 16 bits is refused: Pillow cuts its values at 255.
"""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from deepjax.data.image.crops import Box
from deepjax.data.image.fixed_size import FORMATS, check_end
from deepjax.errors import InputError

MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # Pillow's: 89 million, 256 MiB as RGB
_DEEP = (
    "I",
    "I;16",
    "I;16B",
    "F",
)  # modes of more than 8 bits, of which Pillow makes RGB by cutting all above 255

Choose = Callable[[int, int], Box]  # (height, width) -> what is cut


def decode_rgb(encoded: bytes) -> np.ndarray:
    """A whole image -> (height, width, 3) uint8, as Pillow has it. Raises ValueError above the cap, Pillow's errors for damage."""
    with opened(encoded) as image:
        return np.array(image.convert("RGB"))


def cut(encoded: bytes, choose: Choose, size: int, exact: bool = True) -> np.ndarray:
    """A box of an image, scaled to (size, size, 3) uint8. `choose` tells the box when it knows the image's height and width.

    exact: bilinear, smoothed where that makes it smaller, to the bit as torchvision does it with an image of Pillow's. Otherwise by
    OpenCV, if it can: decoded to 1/2, 1/4 or 1/8 of its sides where the box stays at least as large as `size`, and bilinear without
    smoothing from there, on whole pixels.
    Raises ValueError above the cap, Pillow's errors for damage.
    """
    with opened(encoded) as image:
        box = choose(image.height, image.width)
        if not exact and (pixels := _fast(encoded, image, box, size)) is not None:
            return pixels
        return _exact(image.convert("RGB"), box, size)


def opened(encoded: bytes) -> Image.Image:
    """An image of which the header is read.

    Raises ValueError above the cap, for what is neither JPEG nor PNG, for a JPEG without an end, whose missing part decoders may
    fill up, and for 16 bits of grey.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.UnidentifiedImageError as error:  # which names an object in memory
        raise ValueError("neither a JPEG nor a PNG") from error
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.height} x {image.width} pixels; allowed: {MOST_PIXELS}")
    check_end(image, encoded)
    if image.mode in _DEEP:
        raise ValueError(f"image of mode {image.mode}, 16 bits or more; allowed: 8 bits a channel")
    return image


def _exact(image: Image.Image, box: Box, size: int) -> np.ndarray:
    if box.scaled:
        if box.scaled[0] * box.scaled[1] > MOST_PIXELS:
            raise ValueError(
                f"{box.scaled[0]} x {box.scaled[1]} pixels when scaled; allowed: {MOST_PIXELS}"
            )
        image = image.resize((box.scaled[1], box.scaled[0]), Image.Resampling.BILINEAR)
    part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.array(part.resize((size, size), Image.Resampling.BILINEAR))


def _fast(encoded: bytes, image: Image.Image, box: Box, size: int) -> np.ndarray | None:
    """The same by OpenCV. None for what Pillow must decide: no JPEG, or of four colours."""
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


def _span(start: float, length: float, shrunk: int, most: int) -> slice:
    """The nearest whole pixels of the decoded image, at least one."""
    first = min(round(start / shrunk), most - 1)
    return slice(first, max(first + 1, min(round((start + length) / shrunk), most)))


@functools.cache
def opencv() -> Any:
    """OpenCV, for one image a thread: the threads are ours. Raises InputError where it cannot be imported."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"OpenCV cannot be imported ({error}); install it anew, or set resize_backend='pillow' in a new run"
        ) from error

    cv2.setNumThreads(1)
    return cv2
