"""Which box of an image becomes a square crop: torchvision's arithmetic on given numbers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TRIES = 10  # random boxes that are tried before the central one (torchvision, RandomResizedCrop)
RATIOS = (3 / 4, 4 / 3)  # width / height (Szegedy et al. 2014, section 6)
CROPS = 1  # separates the random stream of the crops from that of the order, (seed, epoch)

Tries = Sequence[Sequence[float]]


class Box(NamedTuple):
    """A part of an image in integer pixels.

    With `scaled` (height, width) the pixels are those of the image once it is scaled to that shape.
    """

    top: int
    left: int
    height: int
    width: int
    scaled: tuple[int, int] | None = None

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Pillow's `crop` takes them."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def sides(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Top, left, height and width in pixels of the unscaled image, of that height and width."""
        down, right = (
            (height / self.scaled[0], width / self.scaled[1]) if self.scaled else (1.0, 1.0)
        )
        return self.top * down, self.left * right, self.height * down, self.width * right


def crop_numbers(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for the crops of a step: (batch_size, TRIES, 4).

    A pure function of (seed, step, place in the batch), from the raw stream of a counter-based
    generator, which NumPy keeps stable between versions.
    """
    bits = np.random.Philox(np.random.SeedSequence((seed, step, CROPS)))
    stream = bits.random_raw(batch_size * TRIES * 4)
    return (stream >> np.uint64(11)).astype(np.float64).reshape(batch_size, TRIES, 4) * 2.0**-53


def area_box(numbers: Tries, height: int, width: int, min_area: float = 0.08) -> Box:
    """A box of a fraction `min_area` to 1 of the area, of ratio 3:4 to 4:3.

    numbers: (tries, 4) in [0, 1) for area, ratio and place. When no try fits, the largest central
    box of such a ratio (Szegedy et al. 2014, section 6; torchvision, RandomResizedCrop.get_params).
    """
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    for fraction, ratio, down, right in numbers:
        area = height * width * (min_area + (1 - min_area) * fraction)
        aspect = math.exp(low + (high - low) * ratio)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
    h, w = min(height, round(width / RATIOS[0])), min(width, round(height * RATIOS[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def scaled_box(numbers: Tries, height: int, width: int, size: int, sides: Sequence[int]) -> Box:
    """Scale the shorter side to a random length from sides[0] to sides[-1]; crop a random square.

    As VGG (section 3.1) and ResNet (section 3.4) were trained; a side below `size` counts as
    `size`.
    """
    length, _, down, right = numbers[0]
    side = max(size, sides[0] + int(length * (sides[-1] - sides[0] + 1)))
    scaled = scaled_shape(height, width, side)
    top, left = int(down * (scaled[0] - size + 1)), int(right * (scaled[1] - size + 1))
    return Box(top, left, size, size, scaled)


def centre_box(height: int, width: int, size: int, crop_ratio: float = 0.875) -> Box:
    """Scale the shorter side to size / crop_ratio; the central square of `size` pixels.

    torchvision's Resize and CenterCrop.
    """
    scaled = scaled_shape(height, width, round(size / crop_ratio))
    top, left = centre_offset(scaled[0], size), centre_offset(scaled[1], size)
    return Box(top, left, size, size, scaled)


def scaled_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width when the shorter of them becomes `side`; the longer is rounded down.

    torchvision's Resize.
    """
    return (
        (side, int(side * width / height))
        if height <= width
        else (int(side * height / width), side)
    )


def centre_offset(extent: int, side: int) -> int:
    """Where a central stretch of `side` begins in `extent` pixels; negative where it is longer.

    torchvision's CenterCrop: halves are rounded to even inside, the left is padded less outside.
    """
    return round((extent - side) / 2) if side <= extent else -((side - extent) // 2)


@dataclasses.dataclass(frozen=True)
class Crops:
    """How images of any size are cropped: random boxes by area, or by `shorter_sides` if given.

    random=False: the central box, as in evaluation, with `crop_ratio` of the shorter side.
    `repeats`: crops of each image, one after the other. `exact`: scaled as Pillow does, with
    antialiasing, instead of as fast as possible.
    """

    min_area: float = 0.08
    shorter_sides: tuple[int, ...] = ()
    random: bool = True
    crop_ratio: float = 0.875
    repeats: int = 1
    exact: bool = False

    def box(self, numbers: Tries, height: int, width: int, size: int) -> Box:
        """The box of an image that becomes a square of `size`. numbers: (TRIES, 4) in [0, 1)."""
        if not self.random:
            return centre_box(height, width, size, self.crop_ratio)
        if self.shorter_sides:
            return scaled_box(numbers, height, width, size, self.shorter_sides)
        return area_box(numbers, height, width, self.min_area)
