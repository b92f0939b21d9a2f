"""A copy of a data set with smaller images, for machines that decode large ones too slowly."""

import io

from PIL import Image

from deepjax.data.image.decode import open_image
from deepjax.data.prepare.tf_example import image_of, parse_example, with_image

QUALITY = 95


def shrink_record(record: bytes, side: int) -> bytes:
    """The record with a smaller image; unchanged where it is small or cannot be decoded."""
    image = image_of(parse_example(record))
    small = shrink(image, side)
    return record if small is image else with_image(record, small)


def shrink(image: bytes, side: int) -> bytes:
    """Scale an image with a shorter side above `side` pixels to that: an RGB JPEG, quality 95.

    Bicubic with antialiasing, as torchvision resizes Pillow's images; EXIF orientation is dropped
    and not applied. An image that is no larger, or cannot be decoded, is returned unchanged.
    """
    try:
        with open_image(image) as picture:
            width, height = picture.size
            shorter = min(width, height)
            if shorter <= side:
                return image
            size = side * width // shorter, side * height // shorter
            small = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    except (MemoryError, ImportError):
        raise
    except Exception:  # as in verify.py: Pillow's errors are of a dozen types
        return image
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()
