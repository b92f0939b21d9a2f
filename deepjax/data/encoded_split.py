"""Splits of encoded images of any size: decoded and cropped by threads as they are read."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from deepjax.backend.cpu import cpu_count
from deepjax.data.catalog import Dataset
from deepjax.data.image.decode import CropFn, decode_crop
from deepjax.data.own.examples import Examples
from deepjax.data.split_spec import SplitName
from deepjax.errors import InputError, describe_error

OnDecodeError = Literal["halt", "skip"]
Undecodable = tuple[int, str]  # the record's index and the decode error
# An image, its label, and the undecodable ones that it substitutes.
ReadResult = tuple[np.ndarray, int, list[Undecodable]]
NOT_DECODE_ERRORS = (MemoryError, ImportError)  # errors that say nothing about an image
IMAGES_PER_TASK = 4  # images that a thread takes at a time


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """Records {"image": bytes, label: ...} in stored order; the index is the example's id.

    `on_decode_error`: "halt" raises InputError; "skip" reports the error under "damaged" of the
    batch: during training the image is replaced by the next valid one, during evaluation it is
    masked out. More than `budget` in a row are an error even so; the caller counts them over a run.
    `threads`: number of decoding threads (0: one per core); the result does not
    depend on it. `fingerprint`: sha256 of the prepared data set, "" where it has none.
    """

    dataset: Dataset
    name: SplitName
    records: Sequence[Mapping[str, Any]]
    on_decode_error: OnDecodeError = "halt"
    budget: int = 0
    threads: int = 0
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes and the label of an image; -1 where it has several (`records` hold them).

        Raises InputError for a label outside the classes, and the reader's own errors for a corrupt
        record.
        """
        try:
            record = self.records[index]
        except RuntimeError as error:
            # ArrayRecord's messages where the disk, the network or a limit fails, not the record
            if any(call in str(error) for call in ("pread()", "open()")):
                raise OSError(f"{self._where(index)} cannot be read: {error}") from error
            raise
        classes = self.dataset.num_classes
        label: Any = np.asarray(record[self.dataset.label]).tolist()
        if not all(0 <= each < classes for each in (label if isinstance(label, list) else [label])):
            raise InputError(f"{self._where(index)} has label {label}; allowed: 0 to {classes - 1}")
        return record["image"], -1 if isinstance(label, list) else label

    def train_images(
        self, ids: Sequence[int], crop_fns: Sequence[CropFn], size: int, exact: bool = False
    ) -> dict[str, Any]:
        """Images of these ids, each cropped to (size, size) by its own function of `crop_fns`.

        Returns {"image", "label"} and, if any, "damaged".
        """
        return self._read_batch(
            lambda i: self._read_or_substitute(ids[i], crop_fns[i], size, exact), len(ids), size
        )

    def eval_images(self, ids: Sequence[int], crop_fn: CropFn, size: int) -> dict[str, Any]:
        """Images of these ids, cropped exactly; the mask of an undecodable image is 0.

        Returns {"image", "label", "mask"} and, if any, "damaged".
        """
        batch = self._read_batch(
            lambda i: self._read_or_black(ids[i], crop_fn, size), len(ids), size
        )
        lost = {index for index, _ in batch.get("damaged", ())}
        return batch | {"mask": np.asarray([index not in lost for index in ids], np.float32)}

    def _read_batch(
        self, read: Callable[[int], ReadResult], count: int, size: int
    ) -> dict[str, Any]:
        images, labels = np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int32)
        damaged: list[list[Undecodable]] = [[]] * count

        def fill(start: int) -> None:
            for i in range(start, min(start + IMAGES_PER_TASK, count)):
                images[i], labels[i], damaged[i] = read(i)

        threads = self.threads or cpu_count()
        over = map if threads == 1 else _pool(threads).map
        for _ in over(fill, range(0, count, IMAGES_PER_TASK)):
            pass  # the first error of any is raised here
        found = tuple(dict(pair for several in damaged for pair in several).items())
        return {"image": images, "label": labels} | ({"damaged": found} if found else {})

    def _read_or_substitute(
        self, index: int, crop_fn: CropFn, size: int, exact: bool
    ) -> ReadResult:
        damaged: list[Undecodable] = []
        while len(damaged) <= self.budget:
            place = (index + len(damaged)) % len(self)
            tried = self._try_read(place, crop_fn, size, exact)
            if not isinstance(tried, str):
                return *tried, damaged
            damaged.append((place, tried))
        raise InputError(
            f"{self._where(index)} is corrupt ({damaged[0][1]}), {len(damaged)} in a row; allowed: "
            f"max_decode_errors, {self.budget}; {self._remedy}, "
            "or raise max_decode_errors in a new run"
        )

    def _read_or_black(self, index: int, crop_fn: CropFn, size: int) -> ReadResult:
        tried = self._try_read(index, crop_fn, size, True)
        return (
            (np.zeros((size, size, 3), np.uint8), 0, [(index, tried)])
            if isinstance(tried, str)
            else (*tried, [])
        )

    def _try_read(
        self, index: int, crop_fn: CropFn, size: int, exact: bool
    ) -> tuple[np.ndarray, int] | str:
        """The image and its label, or the reason why it cannot be decoded where that is no error.

        Only an OSError of the decoder is a decode error; one of the reader is raised.
        """
        try:
            encoded, label = self.read(index)
        except (InputError, OSError, *NOT_DECODE_ERRORS):
            raise
        except Exception as error:  # the record reader has kinds of its own
            return self._decode_error(index, error)
        try:
            return decode_crop(encoded, crop_fn, size, exact), label
        except NOT_DECODE_ERRORS:
            raise
        except Exception as error:  # so have the decoders
            return self._decode_error(index, error)

    def _decode_error(self, index: int, error: Exception) -> str:
        reason = describe_error(error)
        if self.on_decode_error == "halt":
            raise InputError(
                f"{self._where(index)} is corrupt ({reason}); {self._remedy}, or set "
                "on_decode_error='skip' and max_decode_errors in a new run"
            ) from error
        return reason

    @property
    def _remedy(self) -> str:
        own = isinstance(self.records, Examples)
        return "replace that image" if own else "prepare the data set again"

    def _where(self, index: int) -> str:
        record = (
            self.records.name(index) if isinstance(self.records, Examples) else f"record {index}"
        )
        return f"dataset {self.dataset.name!r}, split {self.name!r}, {record}"


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "decode")
