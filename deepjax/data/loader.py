"""Batches in a fixed order: Grain decides which examples, the order is a pure function of (seed, epoch)."""

import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import SupportsIndex

import grain
import numpy as np

from deepjax.data.source import Split
from deepjax.errors import require

Batch = dict[str, np.ndarray]


@functools.lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of range(size) in which an epoch visits the examples: a pure function of (seed, epoch).

    Sorts the raw stream of a counter-based generator, which NumPy keeps stable between versions.
    """
    stream = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(size)
    return np.argsort(stream, kind="stable")


def batch_index(size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The ids (batch_size,) of the examples of training step `step` (from 0); an epoch leaves out what fills no batch."""
    epoch, position = divmod(step, size // batch_size)
    return epoch_order(size, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@dataclasses.dataclass(frozen=True)
class _Batches(grain.sources.RandomAccessDataSource[Batch]):
    """Random access to the batches of a whole training; of each, a process gets its own equal slice."""

    split: Split
    batch_size: int
    seed: int
    steps: int
    process: int
    processes: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: SupportsIndex) -> Batch:
        step = operator.index(step)
        index = batch_index(len(self.split), self.batch_size, self.seed, step).reshape(self.processes, -1)[self.process]
        return {"image": self.split.images[index], "label": self.split.labels[index]}


def train_batches(
    split: Split, batch_size: int, seed: int, steps: int, process: int = 0, processes: int = 1
) -> grain.DatasetIterator:
    """The batches {"image", "label"} of steps 0 to steps - 1; the position is saved and restored by get_state and set_state.

    The order does not depend on the number of processes or of reading threads.
    """
    require(0 < batch_size <= len(split), "batch_size", batch_size, f"1 to {len(split)} (the training images)")
    require(batch_size % processes == 0, "batch_size", batch_size, f"a multiple of the {processes} processes")
    batches = grain.MapDataset.source(_Batches(split, batch_size, seed, steps, process, processes))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def eval_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Every example exactly once, in stored order: {"image", "label", "mask"}; the last batch is padded, its mask is 0 there."""
    for start in range(0, len(split), batch_size):
        images, labels = split.images[start : start + batch_size], split.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        yield {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, (0, missing)),
            "mask": np.pad(np.ones(len(labels), np.float32), (0, missing)),
        }
