"""A copy of a prepared data set whose images are small, for machines that cannot decode large ones fast enough."""

import io

from PIL import Image

from deepjax.data.image.decode import open_image
from deepjax.data.prepare.tf_example import image_of, parse_example, with_image

QUALITY = 95


def shrink_record(record: bytes, side: int) -> bytes:
    """The record with a smaller image, or as it is where the image is small already or cannot be decoded."""
    image = image_of(parse_example(record))
    small = shrink(image, side)
    return record if small is image else with_image(record, small)


def shrink(image: bytes, side: int) -> bytes:
    """A JPEG or PNG whose shorter side is more than `side` pixels -> a JPEG whose shorter side is that, in RGB, of quality 95.

    Bicubic with antialiasing, as torchvision resizes images of Pillow's; orientation is not applied, and nothing of it is kept.
    The very same bytes for an image that is no larger, or that cannot be decoded: it is as damaged as before.
    """
    try:
        with open_image(image) as picture:
            width, height = picture.size
            shorter = min(width, height)
            if shorter <= side:
                return image
            size = side * width // shorter, side * height // shorter
            small = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    except Exception:  # as in damage.py: Pillow's errors are of a dozen types
        return image
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()
