"""Splits whose images are stored encoded, of any size: decoded and cut as they are read, by threads, damaged ones by policy."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from deepjax.backend.cpu import cpu_count
from deepjax.data.catalog import Dataset
from deepjax.data.image.decode import Choose, cut
from deepjax.data.split_spec import SplitName
from deepjax.errors import InputError

OnDamaged = Literal["halt", "skip"]
Damaged = tuple[int, str]  # the record's number and what is wrong with it
Read = tuple[
    np.ndarray, int, list[Damaged]
]  # an image, its label, and what was found damaged on the way to it
PASSING = (MemoryError, ImportError)  # errors that say nothing about an image
AT_ONCE = 4  # images that a thread takes at a time


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """Records {"image": bytes, label: ...} in stored order; the index is the example's id.

    `on_damaged`: an image that cannot be read or decoded is an error, or, with "skip", is told under "damaged" of its batch; in
    training the next of the split stands in its place, in evaluation nothing does. More than `budget` in a row are an error even
    so; over a whole run the caller counts them. `threads` decode (0: as many as this process has cores), and what comes out does
    not depend on their number. `fingerprint`: the sha256 that names the prepared data set, "" where it has none.
    """

    dataset: Dataset
    name: SplitName
    records: Sequence[Mapping[str, Any]]
    on_damaged: OnDamaged = "halt"
    budget: int = 0
    threads: int = 0
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes and the label of an image; -1 where the set has several labels an image (`records` have them).

        Raises InputError for a label outside the classes, and the reader's own errors for a damaged record.
        """
        try:
            record = self.records[index]
        except RuntimeError as error:
            if "pread()" in str(
                error
            ):  # ArrayRecord's words where the disk or the network fails, not the record
                raise OSError(f"{self._where(index)} cannot be read: {error}") from error
            raise
        classes = self.dataset.num_classes
        label: Any = np.asarray(record[self.dataset.label]).tolist()
        if not all(0 <= each < classes for each in (label if isinstance(label, list) else [label])):
            raise InputError(f"{self._where(index)} has label {label}; allowed: 0 to {classes - 1}")
        return record["image"], -1 if isinstance(label, list) else label

    def train_images(
        self, ids: Sequence[int], choose: Sequence[Choose], size: int, exact: bool = False
    ) -> dict[str, Any]:
        """{"image", "label"} and, if any, "damaged" of these ids, each image cut to (size, size) as its own `choose` tells."""
        return self._gathered(
            lambda i: self._or_next(ids[i], choose[i], size, exact), len(ids), size
        )

    def eval_images(self, ids: Sequence[int], choose: Choose, size: int) -> dict[str, Any]:
        """{"image", "label", "mask"} and, if any, "damaged" of these ids, cut exactly; a damaged image's mask is 0."""
        batch = self._gathered(lambda i: self._or_black(ids[i], choose, size), len(ids), size)
        lost = {index for index, _ in batch.get("damaged", ())}
        return batch | {"mask": np.asarray([index not in lost for index in ids], np.float32)}

    def _gathered(self, read: Callable[[int], Read], count: int, size: int) -> dict[str, Any]:
        images, labels = np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int32)
        damaged: list[list[Damaged]] = [[]] * count

        def fill(start: int) -> None:
            for i in range(start, min(start + AT_ONCE, count)):
                images[i], labels[i], damaged[i] = read(i)

        threads = self.threads or cpu_count()
        over = map if threads == 1 else _pool(threads).map
        for _ in over(fill, range(0, count, AT_ONCE)):
            pass  # the first error of any is raised here
        found = tuple(dict(pair for several in damaged for pair in several).items())
        return {"image": images, "label": labels} | ({"damaged": found} if found else {})

    def _or_next(self, index: int, choose: Choose, size: int, exact: bool) -> Read:
        damaged: list[Damaged] = []
        while len(damaged) <= self.budget:
            place = (index + len(damaged)) % len(self)
            tried = self._tried(place, choose, size, exact)
            if not isinstance(tried, str):
                return *tried, damaged
            damaged.append((place, tried))
        raise InputError(
            f"{self._where(index)} is damaged ({damaged[0][1]}), {len(damaged)} in a row; allowed: max_decode_errors, {self.budget}; "
            "prepare the data set again, or raise max_decode_errors in a new run"
        )

    def _or_black(self, index: int, choose: Choose, size: int) -> Read:
        tried = self._tried(index, choose, size, True)
        return (
            (np.zeros((size, size, 3), np.uint8), 0, [(index, tried)])
            if isinstance(tried, str)
            else (*tried, [])
        )

    def _tried(
        self, index: int, choose: Choose, size: int, exact: bool
    ) -> tuple[np.ndarray, int] | str:
        """The image and its label, or, where it is damaged and that is no error, why. Of an OSError a decoder's alone is damage."""
        try:
            encoded, label = self.read(index)
        except (InputError, OSError, *PASSING):
            raise
        except Exception as error:  # the record reader has kinds of its own
            return self._why(index, error)
        try:
            return cut(encoded, choose, size, exact), label
        except PASSING:
            raise
        except Exception as error:  # so have the decoders
            return self._why(index, error)

    def _why(self, index: int, error: Exception) -> str:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if self.on_damaged == "halt":
            advice = "prepare the data set again, or set on_decode_error='skip' and max_decode_errors in a new run"
            raise InputError(f"{self._where(index)} is damaged ({reason}); {advice}") from error
        return reason

    def _where(self, index: int) -> str:
        return f"dataset {self.dataset.name!r}, split {self.name!r}, record {index}"


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "decode")
