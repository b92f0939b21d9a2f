"""The crops of an image that a protocol evaluates, scaled and cut by Pillow as torchvision does."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

from deepjax.data.image.crops import Box, centre_offset, scaled_shape
from deepjax.data.image.decode import MAX_PIXELS
from deepjax.errors import require

Interpolation = Literal["bilinear", "bicubic"]
Cut = Literal["centre", "corners", "square corners", "squares", "grid", "whole"]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
GRID = 5  # "50 crops per scale (5x5 regular grid with 2 flips)", Simonyan and Zisserman 2014, 4.3


def rescaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height once the shorter of them is `side`.

    Raises ValueError above the maximum number of pixels, which a line of one pixel could reach.

    >>> rescaled_size((500, 375), 256)
    (341, 256)
    """
    height, width = scaled_shape(size[1], size[0], side)
    if height * width > MAX_PIXELS:
        raise ValueError(f"{side} x {max(height, width)} pixels when scaled; allowed: {MAX_PIXELS}")
    return width, height


def rescale(
    image: Image.Image, side: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """The image with its shorter side at `side` pixels, with antialiasing; itself at that size."""
    size = rescaled_size(image.size, side)
    return image if size == image.size else image.resize(size, FILTERS[interpolation])


def centre(size: tuple[int, int], width: int, height: int) -> Box:
    """The central box of width x height pixels of an image of (width, height).

    As torchvision's CenterCrop: it may be larger than the image, which is black outside.
    """
    top, left = centre_offset(size[1], height), centre_offset(size[0], width)
    return Box(top, left, height, width)


def corners(size: tuple[int, int], side: int) -> list[Box]:
    """Squares at the four corners and in the centre, in the order of torchvision's FiveCrop.

    Raises InputError where they do not fit.
    """
    _require_fit(size, side)
    right, bottom = size[0] - side, size[1] - side
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [Box(top, left, side, side) for top, left in places] + [centre(size, side, side)]


def square_boxes(size: tuple[int, int]) -> list[Box]:
    """The left, central and right square of a landscape image; of a portrait from the top down."""
    side = min(size)
    last = Box(size[1] - side, size[0] - side, side, side)
    return [Box(0, 0, side, side), centre(size, side, side), last]


def grid(size: tuple[int, int], side: int) -> list[Box]:
    """Squares whose corners lie on a regular 5x5 grid over the image, row by row."""
    _require_fit(size, side)
    lefts, tops = (
        [round(i * (extent - side) / (GRID - 1)) for i in range(GRID)] for extent in size
    )
    return [Box(top, left, side, side) for top in tops for left in lefts]


def cut_crops(
    image: Image.Image, how: Cut, side: int, interpolation: Interpolation = "bilinear"
) -> Iterator[Image.Image]:
    """The crops of a rescaled image, side x side pixels each, unmirrored; "whole" is the image.

    "square corners": corners and centre of the central square (Krizhevsky et al. 2012, section
    4.1); "corners": of the full image (torchvision, fb.resnet.torch). "squares": of each of three
    squares the corners, the centre and the square itself, scaled to `side` (Szegedy et al. 2014,
    section 7).
    """
    match how:
        case "whole":
            yield image
        case "centre":
            yield crop(image, centre(image.size, side, side))
        case "corners":
            yield from (crop(image, box) for box in corners(image.size, side))
        case "square corners":
            square = min(image.size)
            yield from cut_crops(crop(image, centre(image.size, square, square)), "corners", side)
        case "grid":
            yield from (crop(image, box) for box in grid(image.size, side))
        case "squares":
            for square in (crop(image, box) for box in square_boxes(image.size)):
                yield from cut_crops(square, "corners", side)
                yield square.resize((side, side), FILTERS[interpolation])


def crop(image: Image.Image, box: Box) -> Image.Image:
    """A part of an image; black outside of it."""
    return image.crop(box.edges)


def to_array(image: Image.Image) -> np.ndarray:
    """(height, width, channels) uint8."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def _require_fit(size: tuple[int, int], side: int) -> None:
    allowed = f"up to {min(size)}, the shorter side of the rescaled image"
    require(side <= min(size), "crop", side, allowed)
