"""Images in arrays: an .npz file with images and labels."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from deepjax.data.own.examples import Examples
from deepjax.data.own.grouping import TEST_NAMES, TRAIN_NAMES, group
from deepjax.errors import InputError, describe_error

BLOCK = 2**20  # pixels that are counted at a time, as integers of 8 bytes
IMAGES, LABELS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets")
ALLOWED = (
    "images, uint8 (n, height, width) or (n, height, width, 1, 3 or 4), and labels (n,), integers; "
    "or both for each split: x_train, y_train, x_test, y_test or train_images, train_labels, ..."
)


@dataclasses.dataclass(frozen=True)
class Arrays(Examples):
    """Images of one shape in memory."""

    images: np.ndarray
    """(count, height, width, channels) uint8."""
    rows: np.ndarray
    """Their rows in the file."""

    def name(self, index: int) -> str:
        """The row in the file."""
        return f"row {self.rows[index]}"

    def encoded(self, index: int) -> bytes:
        """As PNG."""
        file, image = io.BytesIO(), self.images[index]
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
        return file.getvalue()

    def content(self, index: int) -> bytes:
        """The pixels."""
        return self.images[index].tobytes()

    def sizes(self) -> list[int]:
        """Bytes of the pixels of each."""
        return [int(np.prod(self.images.shape[1:]))] * len(self)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of all pixels, per channel."""
        return pixel_statistics(pixel_counts(self.images))

    def part(self, rows: np.ndarray) -> "Arrays":
        """The images of these rows."""
        return Arrays(self.labels[rows], self.images[rows], self.rows[rows])


def pixel_counts(images: np.ndarray) -> np.ndarray:
    """How often each value occurs, (channels, 256), in images (..., channels) uint8."""
    pixels = images.reshape(-1, images.shape[-1])
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(pixels), BLOCK):
        block = pixels[start : start + BLOCK]
        counts += [np.bincount(channel, minlength=256) for channel in block.T]
    return counts


def pixel_statistics(counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of values 0 to 255. counts: (channels, 256)."""
    weights, values = counts / counts.sum(1, keepdims=True), np.arange(256)
    mean = weights @ values
    variance = np.sum(weights * np.square(values - mean[:, None]), axis=1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def index_npz(file: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The classes and the splits of an .npz file, see `ALLOWED`.

    Raises InputError for other arrays, and as `group` does.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # NumPy's, zipfile's and zlib's kinds
        reason = describe_error(error)
        raise InputError(f"{file} cannot be read as .npz ({reason})") from error
    splits: list[str] = []
    labels: list[str] = []
    images: list[np.ndarray] = []
    for split in ("", *TRAIN_NAMES, *TEST_NAMES):
        found = [_named(arrays, split, names) for names in (IMAGES, LABELS)]
        if split and (found[0] is None) != (found[1] is None):
            kind = "labels" if found[1] is None else "images"
            raise InputError(f"{file} has no {kind} of split {split!r}; allowed: {ALLOWED}")
        if found[0] is not None and found[1] is not None:
            pixels, of_images = _checked(file, found[0], found[1])
            splits += ["train" if split in ("", *TRAIN_NAMES) else split] * len(pixels)
            labels += map(str, of_images.tolist())
            images.append(pixels)
    if not images or len({each.shape[1:] for each in images}) > 1:
        given = ", ".join(f"{name} {each.shape}" for name, each in arrays.items()) or "none"
        raise InputError(f"{file} has the arrays {given}; allowed: {ALLOWED}")
    everything = np.concatenate(images)
    return group(
        file, splits, labels,
        lambda of_rows, rows: Arrays(of_rows, everything[rows], np.array(rows)),
    )  # fmt: skip


def _named(arrays: dict[str, np.ndarray], split: str, names: tuple[str, ...]) -> np.ndarray | None:
    """The array of a split by any of its names: x_train, train_images, images."""
    wanted = [f"{one}_{other}" if split else name
              for name in names for one, other in ((name, split), (split, name))]  # fmt: skip
    return next((arrays[name] for name in wanted if name in arrays), None)


def _checked(file: Path, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = images[..., None] if images.ndim == 3 else images
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    fits = (
        images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3, 4)
        and np.issubdtype(labels.dtype, np.integer) and labels.shape == images.shape[:1]
        and (labels.size == 0 or labels.min() >= 0)
    )  # fmt: skip
    if not fits:
        raise InputError(
            f"{file} has images {images.dtype} {images.shape} and labels {labels.dtype} "
            f"{labels.shape}; allowed: {ALLOWED}"
        )
    return images, labels
