"""Images without labels, as a split that `predict` reads: files and folders, in sorted order."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deepjax.data import Dataset, EncodedSplit, Split
from deepjax.data.image.decode import decode_rgb
from deepjax.data.own.examples import Files
from deepjax.data.own.folder import OTHER_IMAGES, READABLE
from deepjax.data.own.walk import files_below
from deepjax.data.threads import thread_map
from deepjax.errors import InputError, describe_error, require
from deepjax.paths import user_path
from deepjax.progress import counter


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """Images that can be decoded, and the others with the reason."""

    paths: list[str]
    """As given, of folders with the paths within them."""
    split: Split | EncodedSplit
    undecodable: dict[str, str]


def find_images(given: Sequence[str]) -> list[str]:
    """Files as given, and the images in folders and the folders in these, sorted.

    Images of other formats than JPEG and PNG are among them: `open_images` names them as
    undecodable. Hidden files and folders in folders are not, links are followed. Raises InputError
    for a path that does not exist, a folder that cannot be read, a name that no `user_path` may
    have (bytes that are not UTF-8, line breaks), and where there is no image.
    """
    require(bool(given), "images", "", "one file or folder, or more")
    found: list[str] = []
    for name in map(os.path.expanduser, given):
        path = user_path(name, "images")
        if path.is_dir():
            inside = sorted(
                file
                for file in files_below(name)
                if os.path.splitext(file)[1].lower() in (*READABLE, *OTHER_IMAGES)
            )
            for file in inside:
                user_path(file, "images")
            found += inside
        elif path.is_file():
            found.append(name)
        else:
            raise InputError(f"images is {name!r}, which does not exist")
    if not found:
        raise InputError(f"{', '.join(given)} has no JPEG or PNG images")
    return list(dict.fromkeys(found))


def open_images(paths: Sequence[str], dataset: Dataset) -> Unlabelled:
    """The images as the test split of a network's data set; each is decoded once to find damage.

    For networks of photographs they are read as these are; for networks of arrays they are resized
    to the arrays' shape, grey where these are. Raises InputError where none can be decoded, and for
    a network of four channels.
    """
    channels = dataset.shape[2]
    allowed = "a network of 1 or 3 channels: files of images have no more"
    require(channels in (1, 3), "channels", channels, allowed)
    with counter("decoding", len(paths), "image") as advance:

        def read(path: str) -> np.ndarray | str | None:
            found = _reason(path) if dataset.encoded else _as_array(path, dataset.shape)
            advance(1)
            return found

        results = thread_map(read, paths)
    bad = {path: each for path, each in zip(paths, results, strict=True) if isinstance(each, str)}
    good = [path for path in paths if path not in bad]
    if not good:
        path, reason = next(iter(bad.items()))
        raise InputError(f"no image can be decoded; {path}: {reason}")
    labels = np.zeros(len(good), np.int32)
    if dataset.encoded:
        files = Files(labels, Path(), list(good))
        return Unlabelled(good, EncodedSplit(dataset, "test", files), bad)
    arrays = [each for each in results if isinstance(each, np.ndarray)]
    return Unlabelled(good, Split(np.stack(arrays), labels), bad)


def _reason(path: str) -> str | None:
    """Why a file cannot be decoded; None if it can."""
    try:
        decode_rgb(Path(path).read_bytes())
    except Exception as error:  # Pillow's kinds are many
        return describe_error(error)
    return None


def _as_array(path: str, shape: tuple[int, int, int]) -> np.ndarray | str:
    """Pixels of the shape of a network's images, or why there are none."""
    height, width, channels = shape
    try:
        pixels = Image.fromarray(decode_rgb(Path(path).read_bytes()))
    except Exception as error:  # Pillow's kinds are many
        return describe_error(error)
    image = pixels.convert("L" if channels == 1 else "RGB")
    image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(image, np.uint8).reshape(shape)
