"""Errors and losses of a split in evaluation mode, every image counted once over all processes."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from deepjax.data import EncodedSplit, eval_batches
from deepjax.data.encoded_split import Undecodable
from deepjax.data.loader import Batch
from deepjax.data.split_spec import SplitName
from deepjax.training.build import CompiledTraining
from deepjax.training.distributed.collectives import allgather_strings, sync_errors
from deepjax.training.metrics.writer import Row


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Sums over the images of a split."""

    sums: dict[str, Any]
    """As `make_eval_step` gives them, over the images that could be decoded."""
    decode_errors: list[Undecodable]
    """Of this process."""
    undecodable: int
    """Images of all processes that could not be decoded."""

    def row(self, split: SplitName) -> Row:
        """Means over the images, as entries of a row of metrics: `test_error`, `test_loss`, ..."""
        return split_row(split, self.sums, self.undecodable)


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates variables on a split: `Evaluator(compiled)(params, batch_stats, "test")`."""

    compiled: CompiledTraining
    heartbeat: Callable[[], None] = lambda: None
    """Called after each batch."""

    def __call__(
        self,
        params: Any,
        batch_stats: Any,
        split: SplitName,
        *,
        limit: int | None = None,
        before_batch: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Evaluate a split, or its first `limit` images; called by all processes.

        What `before_batch` raises ends the evaluation.
        """
        parts, errors = [], []
        batches = self._batches(split, limit)
        while (batch := self._next_batch(batches)) is not None:
            before_batch()
            errors += batch.pop("damaged", ())
            on_devices = self.compiled.partitioner.put_batch(batch)
            parts.append(self.compiled.eval_step(params, batch_stats, on_devices))
            self.heartbeat()
        parts = jax.device_get(parts)
        sums: Any = jax.tree.map(lambda *numbers: math.fsum(map(float, numbers)), *parts)
        return Evaluation(sums, errors, sum(map(int, allgather_strings(str(len(errors))))))

    def _batches(self, split: SplitName, limit: int | None) -> Iterator[Batch]:
        config = self.compiled.config
        return eval_batches(
            self.compiled.split(split),
            config.batch_size,
            process=jax.process_index(),
            processes=jax.process_count(),
            size=config.eval_shape[0],
            crop_ratio=config.data.eval_crop,
            max_examples=limit,
        )

    def _next_batch(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch. If an encoded one cannot be read in one process, all processes raise."""
        if isinstance(self.compiled.train_split, EncodedSplit):
            return sync_errors(lambda: next(batches, None))
        return next(batches, None)


def split_row(split: SplitName, sums: dict[str, Any], undecodable: int) -> Row:
    """Means over the images; each image that could not be decoded is an error and has no loss."""
    decoded, images = max(1.0, sums["images"]), sums["images"] + undecodable

    def means(head: Any) -> Row:
        return {"error": (head["errors"] + undecodable) / images, "loss": head["loss"] / decoded}

    row = {f"{split}_{name}": value for name, value in means(sums).items()}
    row[f"{split}_images"] = round(images)
    if "top5_errors" in sums:
        row[f"{split}_top5_error"] = (sums["top5_errors"] + undecodable) / images
    heads = {head: means(of_head) for head, of_head in sums["auxiliary"].items()}
    return row | ({f"{split}_auxiliary": heads} if heads else {})
