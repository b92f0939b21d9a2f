"""Batches of views, read ahead by threads: shapes that the devices share equally, the last of each shape padded."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from deepjax.data import Split
from deepjax.data.encoded import EncodedSplit, cores
from deepjax.evaluation.pictures import Group, views_of
from deepjax.evaluation.protocols import Protocol
from deepjax.evaluation.views import Interpolation

AHEAD = 2  # batches that are read while others are computed


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """This process's share of the views of some images.

    arrays: "image" (images, views, height, width, channels) uint8, "ends" (images, 2) int32.
    """

    ids: np.ndarray  # of all processes, without the padding
    group: Group
    arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reader:
    """How views are read. `pixels`: of the views of a batch, mirrored ones too, at most (but for one image a device)."""

    split: Split | EncodedSplit
    protocol: Protocol
    interpolation: Interpolation
    pixels: int
    devices: int = 1
    process: int = 0
    processes: int = 1

    def batches(self, groups: Sequence[Group]) -> Iterator[Batch]:
        """Every image of every group once."""
        with concurrent.futures.ThreadPoolExecutor(cores(), "views") as pool:
            waiting: collections.deque[tuple[np.ndarray, Group, list[concurrent.futures.Future]]] = collections.deque()
            for group in groups:
                count = self.images_of(group)
                for start in range(0, len(group.ids), count):
                    ids = group.ids[start : start + count]
                    share = np.pad(ids, (0, count - len(ids)), constant_values=-1).reshape(self.processes, -1)[self.process]
                    own = [pool.submit(self._read, int(i), group) for i in share if i >= 0]
                    waiting.append((ids, group, own))
                    if len(waiting) > AHEAD:
                        yield self._batch(*waiting.popleft())
            for rest in waiting:
                yield self._batch(*rest)

    def images_of(self, group: Group) -> int:
        """Images of a batch over all devices, a multiple of their number."""
        of_one = group.views * (1 + self.protocol.mirror) * group.height * group.width
        return max(1, self.pixels // of_one // self.devices) * self.devices

    def _read(self, index: int, group: Group) -> tuple[np.ndarray, tuple[int, int]]:
        return views_of(self.split, index, group, self.protocol, self.interpolation)

    def _batch(self, ids: np.ndarray, group: Group, reads: list[concurrent.futures.Future]) -> Batch:
        rows = self.images_of(group) // self.processes
        channels = self.split.images.shape[3] if isinstance(self.split, Split) else 3
        images = np.zeros((rows, group.views, group.height, group.width, channels), np.uint8)
        ends = np.tile(np.array([group.height, group.width], np.int32), (rows, 1))
        for row, read in enumerate(reads):
            images[row], ends[row] = read.result()
        return Batch(ids, group, {"image": images, "ends": ends})
