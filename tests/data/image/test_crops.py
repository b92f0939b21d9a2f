"""Crop boxes: torchvision's for the same random numbers, inside the image, pure functions of the
key.
"""

import functools
import io
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepjax.data.image.crops import (
    RATIOS,
    TRIES,
    Crops,
    area_box,
    centre_box,
    crop_numbers,
    scaled_box,
)
from deepjax.data.image.decode import decode_crop
from tests.data.photographs import crops
from tests.models.torch_reference import library, needs_torch

SHAPES = [
    (350, 400),
    (400, 350),
    (224, 224),
    (1, 1),
    (1, 300),
    (300, 2),
    (37, 5000),
    (223, 225),
    (500, 333),
]


def test_draws_are_uniform_and_their_own_for_each_seed_and_step():
    """Mean 1/2 and variance 1/12 of a uniform number, within four stds of their estimates."""
    numbers = crop_numbers(3, 5, 500)
    assert numbers.shape == (500, TRIES, 4) and numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / numbers.size)
    assert abs(numbers.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / numbers.size)
    np.testing.assert_array_equal(numbers, crop_numbers(3, 5, 500))
    streams = [numbers, crop_numbers(3, 6, 500), crop_numbers(4, 5, 500), crop_numbers(5, 3, 500)]
    assert len({stream[0, 0, 0] for stream in streams}) == 4
    assert np.abs(
        np.corrcoef([stream.ravel() for stream in streams]) - np.eye(4)
    ).max() < 4 / math.sqrt(numbers.size)


@pytest.mark.parametrize("least", [0.08, 0.35, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_box_lies_inside_and_has_the_area_and_ratio_asked_for(shape, least, seed):
    """Szegedy et al. 2014, section 6; to half a pixel a side, as sides are rounded."""
    height, width = shape
    box = area_box(crop_numbers(seed, 0, 1)[0].tolist(), height, width, least)
    assert (
        0 <= box.top <= box.top + box.height <= height
        and 0 <= box.left <= box.left + box.width <= width
    )
    assert box.height >= 1 and box.width >= 1
    if min(shape) > 100 and least < 1:
        assert (box.height + 0.5) * (box.width + 0.5) >= least * height * width
        assert (
            RATIOS[0] <= (box.width + 0.5) / (box.height - 0.5)
            and (box.width - 0.5) / (box.height + 0.5) <= RATIOS[1]
        )


@needs_torch
@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_torchvision_s_for_the_same_random_numbers(shape):
    """The numbers are ours, given to torchvision.

    There uniform_(a, b) becomes a + (b - a) u, randint(n) floor(n u).
    """
    library("torchvision")
    import torch
    from torchvision.transforms import RandomResizedCrop

    for numbers in crop_numbers(0, 0, 40):
        tries = numbers.tolist()
        box = area_box(tries, *shape)
        left = iter([u for share, ratio, _, _ in tries for u in (share, ratio)])
        place = iter(_places(tries, box, shape))

        def uniform(_, low, high, left=left):
            return torch.tensor([low + (high - low) * next(left)], dtype=torch.float64)

        def integer(_, high, size, place=place):
            return torch.tensor([int(next(place) * high)])

        with mock.patch("torch.Tensor.uniform_", uniform), mock.patch("torch.randint", integer):
            top, start, height, width = RandomResizedCrop.get_params(
                Image.new("L", shape[::-1]), (0.08, 1.0), list(RATIOS)
            )
        assert (top, start, height, width) == box[:4]


def _places(tries, box, shape):
    """The last two numbers of the try that gave the box.

    Any for the central box, which uses none.
    """
    height, width = shape
    for share, ratio, down, right in tries:
        area = height * width * (0.08 + 0.92 * share)
        aspect = math.exp(math.log(RATIOS[0]) + math.log(RATIOS[1] / RATIOS[0]) * ratio)
        if (round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))) == (
            box.height,
            box.width,
        ):
            return down, right
    return 0.0, 0.0


@pytest.mark.parametrize("share", [0.875, 1.0, 0.95])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_is_as_near_to_the_middle_as_integer_pixels_allow(shape, share):
    box = centre_box(*shape, 224, share)
    assert min(box.scaled) == round(224 / share)
    assert box.scaled[0] / shape[0] == pytest.approx(
        box.scaled[1] / shape[1], rel=1 / min(box.scaled)
    )
    for start, length, whole in (
        (box.top, box.height, box.scaled[0]),
        (box.left, box.width, box.scaled[1]),
    ):
        assert length == 224 and start >= 0 and abs((whole - length) - 2 * start) <= 1
    top, left, height, width = box.sides(*shape)
    middle = (top + height / 2, left + width / 2)
    # a pixel of the scaled image
    assert middle == pytest.approx((shape[0] / 2, shape[1] / 2), abs=min(shape) / min(box.scaled))


@needs_torch
@pytest.mark.parametrize(("size", "resized"), [(224, 256), (299, 342), (160, 183)])
def test_the_centre_is_torchvision_s(size, resized):
    """342 for 299 is what its Inception-v3 has (torchvision, Inception_V3_Weights)."""
    library("torchvision")
    from torchvision.transforms import CenterCrop, Resize

    for pixels in crops(6, seed=1, longest=500):
        image = Image.fromarray(pixels)
        theirs = np.asarray(CenterCrop(size)(Resize(resized)(image)))
        file = io.BytesIO()
        image.save(file, "PNG")
        ours = decode_crop(file.getvalue(), functools.partial(centre_box, size=size), size)
        np.testing.assert_array_equal(ours, theirs)


def test_a_square_of_an_image_with_a_random_shorter_side():
    """VGG, section 3.1: S in [256, 512], a crop of 224 anywhere; 256 alone as ResNet's smallest."""
    for numbers in crop_numbers(0, 1, 50):
        for sides in [(256, 512), (256,)]:
            box = scaled_box(numbers.tolist(), 350, 400, 224, sides)
            height, width = box.scaled
            assert sides[0] <= height <= sides[-1] and width == int(height * 400 / 350)
            assert (
                0 <= box.top <= height - 224
                and 0 <= box.left <= width - 224
                and box[2:4] == (224, 224)
            )
    # never below the square itself
    assert scaled_box([[0.0, 0.0, 0.0, 0.0]], 100, 100, 224, (64,)).scaled == (
        224,
        224,
    )
    assert {
        scaled_box([[u, 0, 0, 0]], 100, 100, 8, (20, 22)).scaled[0] for u in (0, 0.34, 0.67, 0.999)
    } == {20, 21, 22}


@pytest.mark.parametrize(
    ("crops", "expected"),
    [
        (Crops(), area_box(crop_numbers(0, 0, 1)[0].tolist(), 350, 400)),
        (
            Crops(shorter_sides=(256, 480)),
            scaled_box(crop_numbers(0, 0, 1)[0].tolist(), 350, 400, 224, (256, 480)),
        ),
        (Crops(random=False, crop_ratio=0.9), centre_box(350, 400, 224, 0.9)),
    ],
)
def test_which_kind_of_box(crops, expected):
    assert crops.box(crop_numbers(0, 0, 1)[0].tolist(), 350, 400, 224) == expected
