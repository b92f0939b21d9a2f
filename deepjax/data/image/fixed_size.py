"""Encoded images to arrays: the header is held against the declared shape before a pixel is decoded."""

import io
import re
import warnings

import numpy as np
from PIL import Image

from deepjax.errors import InputError

FORMATS = ("PNG", "JPEG")  # what tfds writes; Pillow's other readers are never reached
_MODES = {1: "L", 3: "RGB"}  # channels -> 8 bits each, in Pillow's words
_MARKER = re.compile(
    rb"\xff([^\x00\x01\xd0-\xd8\xff])"
)  # of a JPEG's segments that have a length, or its end
_END = b"\xd9"  # ITU-T T.81, table B.1


def decode_fixed_size(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """A PNG or JPEG -> (height, width, channels) uint8, of exactly the declared shape.

    Raises InputError when the header declares another shape, so that an image bomb costs nothing, and Pillow's own errors or
    ValueError when the bytes are damaged, of another format, or claim more than 178 million pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", Image.DecompressionBombWarning
        )  # the exact shape below is the stricter cap
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            height, width, channels = shape
            if (image.width, image.height, image.mode) != (width, height, _MODES[channels]):
                raise InputError(f"image has shape {_declared(image)}, expected {shape}")
            check_end_marker(image, encoded)
            return np.asarray(image, np.uint8).reshape(shape)


def check_end_marker(image: Image.Image, encoded: bytes) -> None:
    """Raise ValueError for a JPEG without its end: decoders fill up, in grey, what zeros at its end have taken the place of."""
    if image.format == "JPEG" and not has_end_marker(encoded):
        raise ValueError("JPEG without its end marker: truncated or overwritten")


def has_end_marker(encoded: bytes) -> bool:
    """Whether the segments of a JPEG lead to its end marker; what follows that does not matter, nor what a thumbnail holds."""
    at = 2
    while marker := _MARKER.search(
        encoded, at
    ):  # compressed pixels are skipped: no marker is among them
        if marker[1] == _END:
            return True
        at = marker.end() + int.from_bytes(encoded[marker.end() : marker.end() + 2])
    return False


def _declared(image: Image.Image) -> str:
    """What the header says: '(8, 8, 1)', with the mode where it is no plain 8 bits a channel."""
    bands = len(image.getbands())
    plain = _MODES.get(bands) == image.mode
    return f"{(image.height, image.width, bands)}{'' if plain else f' in mode {image.mode}'}"
