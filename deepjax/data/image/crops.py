"""Which box of an image of any size becomes a square of pixels: torchvision's arithmetic, on numbers of (seed, step, place)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TRIES = 10  # boxes of a random area and ratio that are tried before the centre is taken (torchvision, RandomResizedCrop)
RATIOS = (3 / 4, 4 / 3)  # width / height (Szegedy et al. 2014, section 6)
CROPS = 1  # sets the stream of the crops apart from that of the order, which is (seed, epoch)

Tries = Sequence[Sequence[float]]


class Box(NamedTuple):
    """A part of an image in whole pixels: of the image as it is, or, where `scaled` gives a height and width, scaled to that."""

    top: int
    left: int
    height: int
    width: int
    scaled: tuple[int, int] | None = None

    def sides(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Top, left, height and width in pixels of an image of that height and width, not scaled."""
        down, right = (
            (height / self.scaled[0], width / self.scaled[1]) if self.scaled else (1.0, 1.0)
        )
        return self.top * down, self.left * right, self.height * down, self.width * right


def draws(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Numbers in [0, 1) for the crops of a step, (batch_size, TRIES, 4): a pure function of (seed, step, place in the batch).

    From the raw stream of a counter-based generator, which NumPy keeps stable between versions.
    """
    stream = np.random.Philox(np.random.SeedSequence((seed, step, CROPS))).random_raw(
        batch_size * TRIES * 4
    )
    return (stream >> np.uint64(11)).astype(np.float64).reshape(batch_size, TRIES, 4) * 2.0**-53


def area_box(numbers: Tries, height: int, width: int, least: float = 0.08) -> Box:
    """A box of `least` to all of the area, its ratio 3:4 to 4:3 (Szegedy et al. 2014, section 6).

    numbers: (tries, 4) in [0, 1) for area, ratio and place. When no try fits, the largest box of such a ratio at the centre
    (torchvision, RandomResizedCrop.get_params).
    """
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    for share, ratio, down, right in numbers:
        area = height * width * (least + (1 - least) * share)
        aspect = math.exp(low + (high - low) * ratio)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
    h, w = min(height, round(width / RATIOS[0])), min(width, round(height * RATIOS[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def scaled_box(numbers: Tries, height: int, width: int, size: int, sides: Sequence[int]) -> Box:
    """Scale the shorter side to a length drawn from the first to the last of `sides`, and cut a square of `size` anywhere.

    As VGG (section 3.1) and ResNet (section 3.4) were trained; a side below `size` counts as `size`.
    """
    length, _, down, right = numbers[0]
    side = max(size, sides[0] + int(length * (sides[-1] - sides[0] + 1)))
    scaled = scaled_shape(height, width, side)
    return Box(
        int(down * (scaled[0] - size + 1)), int(right * (scaled[1] - size + 1)), size, size, scaled
    )


def centre_box(height: int, width: int, size: int, share: float = 0.875) -> Box:
    """Scale the shorter side to size / share, and cut a square of `size` from the centre (torchvision, Resize and CenterCrop)."""
    scaled = scaled_shape(height, width, round(size / share))
    return Box(round((scaled[0] - size) / 2), round((scaled[1] - size) / 2), size, size, scaled)


def scaled_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width when the shorter of them becomes `side` (torchvision, Resize)."""
    return (
        (side, int(side * width / height))
        if height <= width
        else (int(side * height / width), side)
    )


@dataclasses.dataclass(frozen=True)
class Crops:
    """How images of any size are cut for training: by area, or by the shorter side where `shorter_sides` are given.

    `random`: or else from the centre, as for evaluation; `share` is of the shorter side there. `repeats`: crops of each image, one
    after the other. `exact`: scaled as Pillow does, which smooths where that makes an image smaller, instead of as fast as may be.
    """

    least_area: float = 0.08
    shorter_sides: tuple[int, ...] = ()
    random: bool = True
    share: float = 0.875
    repeats: int = 1
    exact: bool = False

    def box(self, numbers: Tries, height: int, width: int, size: int) -> Box:
        """The box of an image of that height and width that becomes a square of `size`. numbers: (TRIES, 4) in [0, 1)."""
        if not self.random:
            return centre_box(height, width, size, self.share)
        if self.shorter_sides:
            return scaled_box(numbers, height, width, size, self.shorter_sides)
        return area_box(numbers, height, width, self.least_area)
