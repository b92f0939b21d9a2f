"""The pieces of an image that a protocol looks at: boxes by whole numbers, cut and scaled by Pillow as torchvision does."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

from deepjax.data.image.decode import MOST_PIXELS
from deepjax.errors import require

Box = tuple[
    int, int, int, int
]  # left, top, right, bottom, in pixels; what lies outside the image is black
Interpolation = Literal["bilinear", "bicubic"]
Cut = Literal["centre", "corners", "square corners", "squares", "grid", "whole"]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
GRID = 5  # Simonyan and Zisserman 2014, section 4.3: "50 crops per scale (5x5 regular grid with 2 flips)"


def rescaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height once the shorter of them is `side`; the longer is rounded down, as torchvision's Resize does.

    Raises ValueError above the cap of pixels, which a line of one pixel could reach.

    >>> rescaled_size((500, 375), 256)
    (341, 256)
    """
    long = int(side * max(size) / min(size))
    if side * long > MOST_PIXELS:
        raise ValueError(f"{side} x {long} pixels when scaled; allowed: {MOST_PIXELS}")
    return (side, long) if size[0] <= size[1] else (long, side)


def rescale(
    image: Image.Image, side: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """The image with its shorter side at `side` pixels, smoothed where it becomes smaller; itself where it has that size."""
    size = rescaled_size(image.size, side)
    return image if size == image.size else image.resize(size, FILTERS[interpolation])


def centre(size: tuple[int, int], width: int, height: int) -> Box:
    """The box of width x height pixels in the middle, as torchvision's CenterCrop; larger than the image where that is small."""
    left, top = _middle(size[0], width), _middle(size[1], height)
    return left, top, left + width, top + height


def corners(size: tuple[int, int], side: int) -> list[Box]:
    """Squares at the four corners and in the centre, in the order of torchvision's FiveCrop; InputError where they do not fit."""
    require(
        side <= min(size),
        "crop",
        side,
        f"up to {min(size)}, the shorter side of the rescaled image",
    )
    right, low = size[0] - side, size[1] - side
    at = [(0, 0), (right, 0), (0, low), (right, low)]
    return [(left, top, left + side, top + side) for left, top in at] + [centre(size, side, side)]


def squares(size: tuple[int, int]) -> list[Box]:
    """The left, centre and right square of a landscape image; of a portrait the top, centre and bottom one."""
    side = min(size)
    ends = [(0, 0), (size[0] - side, size[1] - side)]
    first, last = [(left, top, left + side, top + side) for left, top in ends]
    return [first, centre(size, side, side), last]


def grid(size: tuple[int, int], side: int) -> list[Box]:
    """Squares whose corners lie on a regular grid of 5x5 places over the image, row by row."""
    require(
        side <= min(size),
        "crop",
        side,
        f"up to {min(size)}, the shorter side of the rescaled image",
    )
    lefts, tops = (
        [round(i * (extent - side) / (GRID - 1)) for i in range(GRID)] for extent in size
    )
    return [(left, top, left + side, top + side) for top in tops for left in lefts]


def cut(
    image: Image.Image, how: Cut, side: int, interpolation: Interpolation = "bilinear"
) -> Iterator[Image.Image]:
    """The pieces of a rescaled image, side x side pixels each, unmirrored; "whole" is the image itself.

    "square corners": corners and centre of the central square (Krizhevsky et al. 2012, section 4.1, cut that out first);
    "corners": of the whole image (torchvision, fb.resnet.torch). "squares": of each of three squares the corners, the centre and
    the square itself, scaled to `side` (Szegedy et al. 2014, section 7).
    """
    match how:
        case "whole":
            yield image
        case "centre":
            yield image.crop(centre(image.size, side, side))
        case "corners":
            yield from map(image.crop, corners(image.size, side))
        case "square corners":
            square = min(image.size)
            yield from cut(image.crop(centre(image.size, square, square)), "corners", side)
        case "grid":
            yield from map(image.crop, grid(image.size, side))
        case "squares":
            for square in map(image.crop, squares(image.size)):
                yield from cut(square, "corners", side)
                yield square.resize((side, side), FILTERS[interpolation])


def pixels(image: Image.Image) -> np.ndarray:
    """(height, width, channels) uint8."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def _middle(extent: int, side: int) -> int:
    """Where a side begins in the middle: torchvision rounds halves to even inside, and pads less on the left outside."""
    return round((extent - side) / 2) if side <= extent else -((side - extent) // 2)
