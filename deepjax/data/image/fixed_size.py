"""Decode images of one declared shape; the header is checked before any pixel is decoded."""

import io
import re
import warnings

import numpy as np
from PIL import Image

from deepjax.errors import InputError

FORMATS = ("PNG", "JPEG")  # what tfds writes; Pillow's other readers are never reached
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> 8 bits each, in Pillow's words
# of a JPEG's segments that have a length, or its end
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_END = b"\xd9"  # ITU-T T.81, table B.1


def decode_fixed_size(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """A PNG or JPEG -> (height, width, channels) uint8, of exactly the declared shape.

    Raises InputError when the header declares another shape, so that an image bomb costs nothing,
    and Pillow's own errors or ValueError when the bytes are corrupt, of another format, or claim
    more than 178 million pixels.
    """
    with warnings.catch_warnings():
        # the exact shape below is the stricter cap
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            height, width, channels = shape
            if (image.width, image.height, image.mode) != (width, height, _MODES[channels]):
                raise InputError(f"image has shape {_declared(image)}, expected {shape}")
            check_end_marker(image, encoded)
            return np.asarray(image, np.uint8).reshape(shape)


def check_end_marker(image: Image.Image, encoded: bytes) -> None:
    """Raise ValueError for a JPEG without an end marker: decoders would fill the rest with grey."""
    if image.format == "JPEG" and not has_end_marker(encoded):
        raise ValueError("JPEG without its end marker: truncated or overwritten")


def has_end_marker(encoded: bytes) -> bool:
    """Whether the segments of a JPEG lead to its end marker.

    Bytes after it are ignored, and so are thumbnails.
    """
    at = 2
    # compressed pixels are skipped: no marker is among them
    while marker := _MARKER.search(encoded, at):
        if marker[1] == _END:
            return True
        at = marker.end() + int.from_bytes(encoded[marker.end() : marker.end() + 2])
    return False


def _declared(image: Image.Image) -> str:
    """The shape in the header: '(8, 8, 1)', with the mode where it is not 8 bits per channel."""
    bands = len(image.getbands())
    plain = _MODES.get(bands) == image.mode
    return f"{(image.height, image.width, bands)}{'' if plain else f' in mode {image.mode}'}"
