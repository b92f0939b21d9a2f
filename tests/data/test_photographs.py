"""The photographs that other tests read: what they claim to be they are, by Pillow's word."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import DAMAGED, FILES, crops, photograph, variants


@pytest.mark.parametrize(
    ("name", "shape"),
    [("china", (427, 640, 3)), ("flower", (427, 640, 3)), ("hopper", (600, 512, 3))],
)
def test_photographs_are_complete_and_in_colour(name, shape):
    assert photograph(name).shape == shape and photograph(name).dtype == np.uint8
    assert photograph(name).std(axis=(0, 1)).min() > 30 and not np.array_equal(
        *photograph(name)[..., :2].transpose(2, 0, 1)
    )


def test_crops_repeat_and_have_many_sizes():
    first, again, other = crops(60), crops(60), crops(60, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert [c.shape for c in first] != [c.shape for c in other]
    sides = np.array([c.shape[:2] for c in first])
    assert sides.min() >= 40 and sides.max() <= 600 and len({tuple(s) for s in sides}) > 50
    ratios = sides[:, 1] / sides[:, 0]
    assert ratios.min() < 0.6 and ratios.max() > 1.7


@pytest.mark.parametrize(
    ("name", "form", "mode", "size"),
    [
        ("baseline", "JPEG", "RGB", (250, 190)),
        ("progressive", "JPEG", "RGB", (250, 190)),
        ("grey", "JPEG", "L", (250, 190)),
        ("cmyk", "JPEG", "CMYK", (250, 190)),
        ("png", "PNG", "RGB", (250, 190)),
        ("png_palette", "PNG", "P", (250, 190)),
        ("tall", "JPEG", "RGB", (7, 190)),
        ("wide", "JPEG", "RGB", (250, 5)),
    ],
)
def test_variants_are_of_their_form(name, form, mode, size):
    with Image.open(io.BytesIO(variants()[name])) as image:
        assert (image.format, image.mode, image.size) == (form, mode, size)


def test_scans_sampling_and_orientation_stand_in_the_file():
    opened = {
        name: Image.open(io.BytesIO(data))
        for name, data in variants().items()
        if name not in DAMAGED
    }
    assert (
        "progressive" in opened["progressive"].info and "progressive" not in opened["baseline"].info
    )
    sampling = {
        name: opened[name].layer[0][1:3] for name in ("baseline", "half_chroma", "full_chroma")
    }  # pyright: ignore
    assert sampling == {"baseline": (2, 2), "half_chroma": (2, 1), "full_chroma": (1, 1)}
    names = ("baseline", "rotated", "mirrored")
    assert {name: opened[name].getexif().get(0x0112) for name in names} == {
        "baseline": None, "rotated": 6, "mirrored": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("photo", FILES)
def test_damage_is_damage(name, photo):
    with pytest.raises((OSError, SyntaxError)):
        Image.open(io.BytesIO(variants(photo)[name])).load()
