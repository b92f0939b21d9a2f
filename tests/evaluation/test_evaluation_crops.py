"""Crops compared with torchvision's code where it is installed, and with the training's crops."""

import functools

import numpy as np
import pytest
from PIL import Image

from deepjax.data.image.crops import centre_box
from deepjax.data.image.decode import decode_crop as cut_one
from deepjax.data.image.decode import decode_rgb
from deepjax.errors import InputError
from deepjax.evaluation.crops import (
    centre,
    corners,
    cut_crops,
    grid,
    rescale,
    rescaled_size,
    square_boxes,
    to_array,
)
from deepjax.evaluation.images import read_views, shape_buckets
from deepjax.evaluation.protocols import resolve_protocol
from tests.data.photographs import jpeg
from tests.evaluation.reference import AWKWARD, pictures, split_of
from tests.models.torch_reference import library, needs_torch

IMAGES = pictures(((40, 40), (47, 101), (101, 47), (37, 50), (61, 33), (9, 13), (90, 6)))


def torchvision_functions():
    library("torchvision")
    import torchvision.transforms.functional as functional

    return functional


@needs_torch
@pytest.mark.parametrize("side", [32, 37, 50])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_scaling_and_crops_are_torchvisions(side, interpolation):
    theirs = torchvision_functions()
    for picture in map(Image.fromarray, IMAGES):
        expected = theirs.resize(picture, side, theirs.InterpolationMode(interpolation))
        image = rescale(picture, side, interpolation)
        assert np.array_equal(to_array(image), to_array(expected))
        for size in (31, 32, side):
            if size <= side:
                five = [*cut_crops(image, "corners", size)]
                assert all(
                    np.array_equal(to_array(a), to_array(b))
                    for a, b in zip(five, theirs.five_crop(expected, size), strict=True)
                )
        for size in (31, side, side + 1, side + 8):  # beyond the image it is black
            (one,) = cut_crops(image, "centre", size)
            assert np.array_equal(to_array(one), to_array(theirs.center_crop(expected, size)))


@needs_torch
def test_mirrors_of_crops_are_crops_of_the_mirror_where_nothing_odd_is_left_over():
    """The TenCrop of torchvision mirrors the image.

    Its centre is ours mirrored where width - crop is even.
    """
    theirs, (picture,) = torchvision_functions(), map(Image.fromarray, pictures(((37, 50),)))
    ours = {to_array(view)[:, ::-1].tobytes() for view in cut_crops(picture, "corners", 32)}
    assert ours == {to_array(view).tobytes() for view in theirs.ten_crop(picture, 32)[5:]}


@pytest.mark.parametrize(("crop", "side"), [(32, 37), (224, 256)])
def test_a_single_crop_is_that_of_training(crop, side):
    """Bitwise: `decode_crop`, and the full image, scaled and then cropped."""
    for picture in pictures(((47, 101), (101, 47), (64, 64), (300, 200), (375, 500))):
        encoded = jpeg(picture)
        expected = cut_one(encoded, functools.partial(centre_box, size=crop), crop)
        (ours,) = cut_crops(rescale(Image.fromarray(decode_rgb(encoded)), side), "centre", crop)
        assert np.array_equal(to_array(ours), expected)


def test_a_line_is_not_scaled_to_more_pixels_than_an_image_may_have():
    with pytest.raises(ValueError, match="256 x 5120000 pixels when scaled; allowed: "):
        rescaled_size((20_000, 1), 256)
    thin = split_of([np.zeros((1, 20_000, 3), np.uint8)])
    for name in ("1-crop", "dense"):  # in an array, and when the arrays are chosen
        protocol = resolve_protocol(name, "small", 256)
        with pytest.raises(
            InputError, match=r"record 0 is corrupt \(ValueError: .* pixels when scaled"
        ):
            for group in shape_buckets(thin, protocol, 256):
                read_views(thin, 0, group, protocol, "bilinear")


@pytest.mark.parametrize(
    "size", [(width, height) for height, width in AWKWARD] + [(37, 37), (37, 38)]
)
def test_boxes_stay_inside_and_touch_the_edges(size):
    image = rescaled_size(size, 37)
    assert min(image) == 37
    for boxes in (corners(image, 32), square_boxes(image), grid(image, 32)):
        left, top, right, bottom = np.array([box.edges for box in boxes]).T
        assert (left.min(), top.min(), right.max(), bottom.max()) == (0, 0, *image)
        assert np.all(right - left == bottom - top)
    assert len(grid(image, 32)) == 25 and len(square_boxes(image)) == 3


def test_a_box_larger_than_the_image_is_black_around_it():
    """Torchvision pads (crop - width) // 2 on the left, one more on the right."""
    assert centre((10, 32), 13, 32).edges == (-1, 0, 12, 32)
    (padded,) = cut_crops(Image.new("RGB", (10, 32), "white"), "centre", 32)
    columns = to_array(padded).mean(axis=(0, 2))
    assert columns.tolist() == [0.0] * 11 + [255.0] * 10 + [0.0] * 11


@pytest.mark.parametrize("how", ["corners", "grid"])
def test_crops_larger_than_the_image_are_refused(how):
    with pytest.raises(InputError, match="crop is 33; allowed: up to 32"):
        list(cut_crops(Image.new("RGB", (32, 40)), how, 33))
