"""Batches of views, read ahead by threads, in shapes that divide evenly over the devices."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from deepjax.data import Split
from deepjax.data.encoded_split import EncodedSplit, cpu_count
from deepjax.errors import InputError
from deepjax.evaluation.crops import Interpolation
from deepjax.evaluation.images import ShapeBucket, read_views
from deepjax.evaluation.protocols import Protocol

PREFETCHED_BATCHES = 2  # batches that are read while others are computed


@dataclasses.dataclass(frozen=True, eq=False)
class ViewBatch:
    """This process's slice of the views of some images.

    arrays: "id" (images,) int32, -1 for padding and undecodable images; "image" (images, views,
    height, width, channels) uint8; "ends" (images, 2) int32.
    """

    images: int  # of all processes, without the padding
    arrays: dict[str, np.ndarray]
    # the decode error of the first undecodable image of this process's slice, if any
    undecodable: str


@dataclasses.dataclass(frozen=True)
class ViewReader:
    """Reads views. `pixels`: maximum per batch, with mirrored views, but one image per device."""

    split: Split | EncodedSplit
    protocol: Protocol
    interpolation: Interpolation
    pixels: int
    devices: int = 1
    process: int = 0
    processes: int = 1

    def batches(self, groups: Sequence[ShapeBucket]) -> Iterator[ViewBatch]:
        """Every image of every bucket once."""
        with concurrent.futures.ThreadPoolExecutor(cpu_count(), "views") as pool:
            waiting: collections.deque[
                tuple[int, np.ndarray, ShapeBucket, list[concurrent.futures.Future]]
            ] = collections.deque()
            for group in groups:
                count = self.images_per_batch(group)
                for start in range(0, len(group.ids), count):
                    ids = group.ids[start : start + count]
                    own_ids = np.pad(ids, (0, count - len(ids)), constant_values=-1).reshape(
                        self.processes, -1
                    )[self.process]
                    reads = [pool.submit(self._read, int(i), group) for i in own_ids if i >= 0]
                    waiting.append((len(ids), own_ids, group, reads))
                    if len(waiting) > PREFETCHED_BATCHES:
                        yield self._batch(*waiting.popleft())
            for rest in waiting:
                yield self._batch(*rest)

    def images_per_batch(self, group: ShapeBucket) -> int:
        """Images per batch over all devices, a multiple of their number; at most what is needed."""
        of_one = group.views * (1 + self.protocol.mirror) * group.height * group.width
        return (
            max(1, min(self.pixels // of_one // self.devices, -(-len(group.ids) // self.devices)))
            * self.devices
        )

    def _read(self, index: int, group: ShapeBucket) -> tuple[np.ndarray, tuple[int, int]]:
        return read_views(self.split, index, group, self.protocol, self.interpolation)

    def _batch(
        self,
        count: int,
        own_ids: np.ndarray,
        group: ShapeBucket,
        reads: list[concurrent.futures.Future],
    ) -> ViewBatch:
        rows, ids, damaged = len(own_ids), own_ids.astype(np.int32), ""
        channels = self.split.images.shape[3] if isinstance(self.split, Split) else 3
        images = np.zeros((rows, group.views, group.height, group.width, channels), np.uint8)
        ends = np.tile(np.array([group.height, group.width], np.int32), (rows, 1))
        for row, read in enumerate(reads):
            try:
                images[row], ends[row] = read.result()
            except InputError as error:  # raised when all processes know of it
                ids[row], damaged = -1, damaged or str(error)
        return ViewBatch(count, {"id": ids, "image": images, "ends": ends}, damaged)
