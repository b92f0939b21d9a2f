"""Slow, obvious reference code: crops by NumPy slices, a network applied to one at a time."""

import numpy as np
from flax import linen as nn
from PIL import Image

from deepjax.data import Dataset
from deepjax.data.encoded_split import EncodedSplit
from tests.data.photographs import crops, jpeg, photograph

CROP = 32
CLASSES = 12
DATASET = Dataset(
    "photographs",
    (CROP, CROP, 3),
    CLASSES,
    0,
    7,
    (120.0, 110.0, 100.0),
    (60.0, 61.0, 62.0),
    True,
    0,
    "made up",
    encoded=True,
)
AWKWARD = ((64, 64), (33, 32), (47, 101), (101, 47), (9, 13), (250, 6), (5, 200))
"""Heights and widths: odd ones, sides below the crop, ratios of 1:40."""


def pictures(sizes=AWKWARD) -> list[np.ndarray]:
    """A piece of a photograph of each size."""
    whole = Image.fromarray(photograph())
    return [
        np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))
        for height, width in sizes
    ]


def split_of(images: list[np.ndarray], labels=None) -> EncodedSplit:
    """Images as a test split, stored as JPEG."""
    labels = [i % CLASSES for i in range(len(images))] if labels is None else labels
    return EncodedSplit(
        DATASET,
        "test",
        [{"image": jpeg(i), "label": label} for i, label in zip(images, labels, strict=True)],
    )


def many(count: int) -> EncodedSplit:
    """Random pieces of photographs of many sizes."""
    return split_of(crops(count, shortest=20, longest=120))


class Small(nn.Module):
    """A network that depends on places.

    A convolution, and a linear layer over all places of the crop.
    """

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(4, (5, 5), (4, 4), padding="VALID")(images))
        return 3 * nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


def scaled(image: np.ndarray, side: int) -> np.ndarray:
    """Shorter side at `side` pixels; torchvision rounds the longer down."""
    height, width = image.shape[:2]
    new = (
        (side, int(side * height / width))
        if width <= height
        else (int(side * width / height), side)
    )
    return np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BILINEAR))


def middle(extent: int, side: int) -> int:
    """Where the centre begins."""
    return round((extent - side) / 2)


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """The central square."""
    top, left = middle(image.shape[0], side), middle(image.shape[1], side)
    return image[top : top + side, left : left + side]


def five(image: np.ndarray, side: int) -> list[np.ndarray]:
    """Four corners and the centre."""
    return [
        image[:side, :side],
        image[:side, -side:],
        image[-side:, :side],
        image[-side:, -side:],
        centre(image, side),
    ]


def three_squares(image: np.ndarray) -> list[np.ndarray]:
    """Left, centre, right of a landscape; top, centre, bottom of a portrait."""
    side = min(image.shape[:2])
    return [image[:side, :side], centre(image, side), image[-side:, -side:]]


def ten_crop(image: np.ndarray) -> list[np.ndarray]:
    """Krizhevsky et al. 2012, section 4.1: of the central square; 37 is to 32 as 256 to 224."""
    square = scaled(image, 37)
    return with_mirrors(five(centre(square, 37), CROP))


def hundred_and_forty_four(image: np.ndarray) -> list[np.ndarray]:
    """Szegedy et al. 2014, section 7; scales are to 32 as 256, 288, 320 and 352 to 224."""
    views = []
    for side in (37, 41, 46, 50):
        for square in three_squares(scaled(image, side)):
            views += five(square, CROP)
            views.append(
                np.asarray(Image.fromarray(square).resize((CROP, CROP), Image.Resampling.BILINEAR))
            )
    return with_mirrors(views)


def fifty_a_scale(image: np.ndarray) -> list[np.ndarray]:
    """Simonyan and Zisserman 2014, section 4.3: a 5x5 grid at three scales, here 37, 55 and 73."""
    views = []
    for side in (37, 55, 73):
        whole = scaled(image, side)
        rows, columns = (
            [round(share * (extent - CROP)) for share in (0, 0.25, 0.5, 0.75, 1)]
            for extent in whole.shape[:2]
        )
        views += [whole[top : top + CROP, left : left + CROP] for top in rows for left in columns]
    return with_mirrors(views)


def with_mirrors(views: list[np.ndarray]) -> list[np.ndarray]:
    """The views, then their mirror images."""
    return views + [view[:, ::-1] for view in views]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of one image's logits, in double precision."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()
