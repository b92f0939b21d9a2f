"""Test images as the views of a protocol: photographs stored as JPEG, or arrays of one size."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from deepjax.data import Split
from deepjax.data.encoded_split import NOT_DECODE_ERRORS, EncodedSplit
from deepjax.data.image.decode import decode_rgb
from deepjax.data.image.fixed_size import FORMATS
from deepjax.errors import InputError, describe_error
from deepjax.evaluation.accuracy import label_table
from deepjax.evaluation.crops import Interpolation, cut_crops, rescale, rescaled_size, to_array
from deepjax.evaluation.dense import array_size
from deepjax.evaluation.protocols import Protocol

Size = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class ShapeBucket:
    """Images whose views are arrays of one shape: `views` of each, cropped at each of `sides`."""

    ids: np.ndarray
    sides: tuple[int, ...]
    views: int
    height: int
    width: int


def shape_buckets(
    split: Split | EncodedSplit, protocol: Protocol, crop: int, filled: bool = False
) -> list[ShapeBucket]:
    """All images by the shapes of their arrays: once per scale of a dense protocol, else once.

    filled: each full image fills its array, so that there are as many shapes as the images have.
    """
    everything = np.arange(len(split))
    if isinstance(split, Split):
        return [ShapeBucket(everything, (), 1, *split.images.shape[1:3])]
    if not protocol.dense:
        return [
            ShapeBucket(
                everything, protocol.sides, protocol.views // (1 + protocol.mirror), crop, crop
            )
        ]
    sizes = [_size(split, i) for i in range(len(split))]
    groups = []
    for side in protocol.sides:
        scaled = [_scaled(split, i, size, side) for i, size in enumerate(sizes)]
        shapes = scaled if filled else list(map(array_size, scaled))
        for width, height in sorted(set(shapes)):
            ids = np.flatnonzero([shape == (width, height) for shape in shapes])
            groups.append(ShapeBucket(ids, (side,), 1, height, width))
    return groups


def read_labels(split: Split | EncodedSplit) -> np.ndarray:
    """The labels of every image: (images, max labels), -1 where an image has fewer."""
    if isinstance(split, Split):
        return label_table(split.labels.tolist())
    return label_table([_read(split, i)[1] for i in range(len(split))])


def read_views(
    split: Split | EncodedSplit,
    index: int,
    group: ShapeBucket,
    protocol: Protocol,
    interpolation: Interpolation,
) -> tuple[np.ndarray, tuple[int, int]]:
    """The views (views, height, width, channels) uint8 of an image; (height, width) of the last.

    A view may be smaller than its array. Raises InputError, naming the record, for an undecodable
    image, since every image counts.
    """
    if isinstance(split, Split):
        return split.images[index][None], (group.height, group.width)
    encoded, _ = _read(split, index)
    views = np.zeros((group.views, group.height, group.width, 3), np.uint8)
    ends, at = (group.height, group.width), 0
    with _named(split, index):
        image = Image.fromarray(decode_rgb(encoded))
        for side in group.sides:
            for piece in cut_crops(
                rescale(image, side, interpolation), protocol.cut, group.height, interpolation
            ):
                ends = (piece.height, piece.width)
                views[at, : piece.height, : piece.width] = to_array(piece)
                at += 1
    return views, ends


def _read(split: EncodedSplit, index: int) -> tuple[bytes, list[int]]:
    """The bytes of an image and its labels: several, one or none."""
    with _named(split, index):
        encoded, label = split.read(index)
        several: Sequence[int] = (
            [label]
            if label >= 0
            else np.asarray(split.records[index][split.dataset.label]).tolist()
        )
        return encoded, list(several)


def _size(split: EncodedSplit, index: int) -> Size:
    encoded, _ = _read(split, index)
    with _named(split, index), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        return image.size


def _scaled(split: EncodedSplit, index: int, size: Size, side: int) -> Size:
    with _named(split, index):
        return rescaled_size(size, side)


@contextlib.contextmanager
def _named(split: EncodedSplit, index: int) -> Iterator[None]:
    """Turn a decode error into an InputError that names the record."""
    try:
        yield
    except (InputError, *NOT_DECODE_ERRORS):
        raise
    except Exception as error:  # Pillow and the record reader have a dozen kinds
        reason = describe_error(error)
        where = f"dataset {split.dataset.name!r}, split {split.name!r}, record {index}"
        raise InputError(
            f"{where} is corrupt ({reason}); every image counts in an evaluation: prepare the data "
            "set again"
        ) from error
