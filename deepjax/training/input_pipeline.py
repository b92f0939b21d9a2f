"""The training batches of one process, on the devices a few steps ahead, and their position."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax

from deepjax.data.encoded_split import Undecodable
from deepjax.data.loader import Batch

DeviceBatch = dict[str, jax.Array]  # "image" and "label", global arrays
# Arguments: the steps done with that batch, and its errors.
ReportErrors = Callable[[int, Sequence[Undecodable]], None]


def device_batch(
    put: Callable[[Batch], DeviceBatch], batch: Batch
) -> tuple[DeviceBatch, Sequence[Undecodable]]:
    """A host batch -> its arrays on the devices, and its decode errors."""
    return put({name: batch[name] for name in ("image", "label")}), batch.get("damaged", ())


class BatchStream(Iterator[DeviceBatch]):
    """An iterator over the batches of all steps, which can be moved to a saved position.

    Decode errors are reported when their batch is taken, not when it is prefetched: so they belong
    to a step, and a resumed run reports the same ones at the same steps.
    """

    def __init__(
        self,
        source: grain.DatasetIterator[Any],
        report_errors: ReportErrors = lambda done, errors: None,
    ) -> None:
        """`source`: an iterator over pairs as `device_batch` makes them."""
        self._source, self._report_errors = source, report_errors
        self._done = 0

    def __next__(self) -> DeviceBatch:
        """The next batch."""
        batch, errors = next(self._source)
        self._done += 1
        if errors:
            self._report_errors(self._done, errors)
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the batch taken last."""
        return self._source.get_state()

    def seek(self, position: dict[str, Any], done: int) -> None:
        """Continue from a position of `get_state`, after so many steps."""
        self._source.set_state(position)
        self._done = done

    def close(self) -> None:
        """Stop prefetching."""
        self._source.close()
