"""Batches in a fixed order: a pure function of (seed, epoch), read ahead by Grain."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from deepjax.backend.cpu import cpu_count
from deepjax.data.encoded_split import EncodedSplit
from deepjax.data.image.crops import Crops, centre_box, crop_numbers
from deepjax.data.image.decode import opencv
from deepjax.data.splits import Split
from deepjax.errors import require

# arrays, and "damaged": tuples of (id, what is wrong) where an encoded split has such
Batch = dict[str, Any]
DEVICE_PREFETCH = 2  # batches on the devices besides the one in use


@functools.lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the examples: a permutation, a function of (seed, epoch).

    Sorts the raw stream of a counter-based generator, which NumPy keeps stable between versions.
    Of int32, as ids are: the two orders that are kept take 8 bytes an example.
    """
    stream = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(size)
    return np.argsort(stream, kind="stable").astype(np.int32)


def batch_index(size: int, batch_size: int, seed: int, step: int, repeats: int = 1) -> np.ndarray:
    """The example ids (batch_size,) of a training step, from 0; incomplete batches are dropped.

    `repeats`: consecutive copies of each example; an epoch keeps its length and sees 1 / repeats of
    the examples, as with the RASampler of DeiT and timm (arXiv:1902.05509).
    """
    epoch, position = divmod(step, size // batch_size)
    places = np.arange(position * batch_size, (position + 1) * batch_size)
    return epoch_order(size, seed, epoch)[places // repeats]


@dataclasses.dataclass(frozen=True)
class TrainBatches(grain.sources.RandomAccessDataSource[Batch]):
    """Random access to the batches of a training; a process reads only its own slice of each.

    `crops` and `size_at` (image size at a step, in pixels) are for encoded splits.
    """

    split: Split | EncodedSplit
    batch_size: int
    seed: int
    steps: int
    process: int = 0
    processes: int = 1
    crops: Crops = Crops()
    size_at: Callable[[int], int] | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: SupportsIndex) -> Batch:
        step = operator.index(step)
        ids = self._own_rows(
            batch_index(len(self.split), self.batch_size, self.seed, step, self.crops.repeats)
        )
        if isinstance(self.split, Split):
            return {"image": self.split.images[ids], "label": self.split.labels[ids]}
        size = self.size_at(step) if self.size_at else self.split.dataset.shape[0]
        numbers = self._own_rows(crop_numbers(self.seed, step, self.batch_size)).tolist()
        crop_fns = [functools.partial(self.crops.box, of_one, size=size) for of_one in numbers]
        return self.split.train_images(ids.tolist(), crop_fns, size, self.crops.exact)

    def _own_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.split(rows, self.processes)[self.process]


def train_batches(
    split: Split | EncodedSplit,
    batch_size: int,
    seed: int,
    steps: int,
    process: int = 0,
    processes: int = 1,
    crops: Crops = Crops(),  # noqa: B008  # frozen
    size_at: Callable[[int], int] | None = None,
    put: Callable[[Batch], Any] | None = None,
) -> grain.DatasetIterator:
    """The batches {"image", "label"} of steps 0 to steps - 1.

    get_state and set_state save and restore the position. The batches do not depend on the number
    of processes or reading threads. `put`: applied to each batch by its own thread, a few batches
    ahead (it puts them on the devices); the position is that of the batch taken.
    """
    require(
        0 < batch_size <= len(split),
        "batch_size",
        batch_size,
        f"1 to {len(split)} (the training images)",
    )
    require(
        batch_size % processes == 0,
        "batch_size",
        batch_size,
        f"a multiple of the {processes} processes",
    )
    if isinstance(split, EncodedSplit) and not crops.exact:
        opencv()  # that it is missing is no damage of an image
    batches = _prefetch(
        TrainBatches(split, batch_size, seed, steps, process, processes, crops, size_at), split
    )
    return iter(
        batches
        if put is None
        else ThreadPrefetchIterDataset(batches.map(put), prefetch_buffer_size=DEVICE_PREFETCH)
    )


@dataclasses.dataclass(frozen=True)
class EvalBatches(grain.sources.RandomAccessDataSource[Batch]):
    """Random access to the batches of an evaluation; a process reads only its own slice of each."""

    split: Split | EncodedSplit
    batch_size: int
    process: int = 0
    processes: int = 1
    size: int = 0
    crop_ratio: float = 0.875
    max_examples: int | None = None

    def __len__(self) -> int:
        return -(-self._count // self.batch_size)

    @property
    def _count(self) -> int:
        return (
            len(self.split)
            if self.max_examples is None
            else min(self.max_examples, len(self.split))
        )

    def __getitem__(self, index: SupportsIndex) -> Batch:
        own = self.batch_size // self.processes
        start = operator.index(index) * self.batch_size + self.process * own
        ids = range(start, max(start, min(start + own, self._count)))
        batch = read_examples(self.split, ids, self.size, self.crop_ratio)
        missing = own - len(ids)
        return batch | {
            "image": np.pad(batch["image"], ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(batch["label"], (0, missing)),
            "mask": np.pad(batch["mask"], (0, missing)),
        }


def read_examples(
    split: Split | EncodedSplit, ids: Sequence[int], size: int = 0, crop_ratio: float = 0.875
) -> Batch:
    """{"image", "label", "mask"} of these ids, as in evaluation; arguments as in `eval_batches`."""
    if isinstance(split, Split):
        rows = np.asarray(ids, np.intp)
        return {
            "image": split.images[rows],
            "label": split.labels[rows],
            "mask": np.ones(len(rows), np.float32),
        }
    size = size or split.dataset.shape[0]
    return split.eval_images(
        ids, functools.partial(centre_box, size=size, crop_ratio=crop_ratio), size
    )


def eval_batches(
    split: Split | EncodedSplit,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
    size: int = 0,
    crop_ratio: float = 0.875,
    max_examples: int | None = None,
) -> Iterator[Batch]:
    """Every example exactly once, in stored order: {"image", "label", "mask"}.

    The last batch is padded, with mask 0. Of an encoded split the images are central squares of
    `size` pixels (0: the data set's), `crop_ratio` of the shorter side, cropped exactly; an
    undecodable one has mask 0 and is reported under "damaged". `max_examples`: only the first so
    many.
    """
    require(
        batch_size >= 1 and batch_size % processes == 0,
        "batch_size",
        batch_size,
        f"a multiple of the {processes} processes",
    )
    require(0 < crop_ratio <= 1, "crop_ratio", crop_ratio, "above 0 up to 1")
    batches = EvalBatches(split, batch_size, process, processes, size, crop_ratio, max_examples)
    return (
        (batches[i] for i in range(len(batches)))
        if isinstance(split, Split)
        else iter(_prefetch(batches, split))
    )


def _prefetch(
    batches: grain.sources.RandomAccessDataSource[Batch], split: Split | EncodedSplit
) -> grain.IterDataset[Batch]:
    """Batches in order, read a few ahead; two at a time if encoded, so that no core idles."""
    several = isinstance(split, EncodedSplit) and (split.threads or cpu_count()) > 1
    options = grain.ReadOptions(num_threads=2 if several else 1, prefetch_buffer_size=4)
    return grain.MapDataset.source(batches).to_iter_dataset(options)
