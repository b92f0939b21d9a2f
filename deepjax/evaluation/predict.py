"""Predictions for a test set: every image exactly once, on all devices and processes."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.data import Dataset, Split
from deepjax.data.augment.basic import normalize, resize
from deepjax.data.encoded_split import EncodedSplit
from deepjax.errors import InputError, require
from deepjax.evaluation.crops import Interpolation
from deepjax.evaluation.dense import (
    apply_to_valid_region,
    as_fully_convolutional,
    needs_filled_arrays,
)
from deepjax.evaluation.images import shape_buckets
from deepjax.evaluation.protocols import Average, Protocol
from deepjax.evaluation.reader import ViewBatch, ViewReader
from deepjax.training.distributed.collectives import allgather_strings
from deepjax.training.distributed.sharding import Partitioner
from deepjax.training.run_directory.tested_data import TrainedOn

Report = Callable[[int, int], None]  # (views done, views in all)
MAX_BATCHES_IN_FLIGHT = 2  # batches on the devices before the result of the first is awaited


@dataclasses.dataclass(frozen=True, eq=False)
class EvalModel:
    """A network with its variables and preprocessing."""

    name: str
    source: str
    """Origin of the variables: a file, public weights, or a run."""
    model: nn.Module
    variables: Any
    dataset: Dataset
    """Data set whose mean and std normalise images."""
    crop: int
    """Crop size of a photograph in pixels; arrays are resized to it, or to `stored`."""
    resize: int = 0
    """Shorter side in pixels from which a single crop is taken; 0: 8/7 of the crop."""
    interpolation: Interpolation = "bilinear"
    stored: tuple[int, int] | None = None
    """Height and width to which stored arrays are resized, where not the square of a crop."""
    step: int = 0
    """Training steps of a run's variables."""
    averaged: bool = False
    """Whether the variables are a run's exponential moving averages."""
    assumed: str = ""
    """Message on preprocessing that is assumed, as it is not known for the weights."""
    trained_on: TrainedOn | None = None
    """The data of the training, where they are known."""
    precision: str = "float32"
    """Dtype of the activations."""


def predict(
    member: EvalModel,
    split: Split | EncodedSplit,
    protocol: Protocol,
    partitioner: Partitioner,
    batch_size: int = 64,
    report: Report = lambda done, total: None,
) -> np.ndarray:
    """Log-probabilities (images, classes) float32 of every image in stored order.

    protocol: with sides in pixels. batch_size: crops per step over all devices, or full images of
    as many pixels; but the crops of an image, mirrored ones too, stay together, and every device
    has one image or more. Raises InputError, in all processes, for an undecodable image; and for
    several crops of images that are stored as arrays.
    """
    require(batch_size >= 1, "batch_size", batch_size, "1 or more")
    if isinstance(split, Split) and protocol.name != "1-crop":
        raise InputError(
            f"protocol is {protocol.name!r}; allowed: '1-crop', where images are stored at the "
            "network's size"
        )
    groups = shape_buckets(split, protocol, member.crop, needs_filled_arrays(member.model))
    pixels = batch_size * (
        groups[0].height * groups[0].width if isinstance(split, Split) else member.crop**2
    )
    where = (partitioner.mesh.devices.size, jax.process_index(), jax.process_count())
    reader = ViewReader(split, protocol, member.interpolation, pixels, *where)
    params, batch_stats = map(
        partitioner.put_state, (member.variables["params"], member.variables.get("batch_stats", {}))
    )
    step = partitioner.compile_eval(
        make_predict_step(member, protocol, isinstance(split, Split)), params, batch_stats
    )
    sums = _ScoreSums(protocol.average, len(split))
    done, total = 0, sum(len(group.ids) for group in groups)
    waiting: collections.deque[tuple[ViewBatch, tuple[Array, Array]]] = collections.deque()
    for batch in reader.batches(groups):
        waiting.append(
            (
                ViewBatch(batch.images, {}, batch.undecodable),
                step(params, batch_stats, partitioner.put_batch(batch.arrays)),
            )
        )
        if len(waiting) > MAX_BATCHES_IN_FLIGHT:
            _add(sums, *waiting.popleft())
        done += batch.images
        report(done, total)
    for rest in waiting:
        _add(sums, *rest)
    return sums.mean(len(protocol.sides) if protocol.dense else 1)


def _add(sums: "_ScoreSums", batch: ViewBatch, output: tuple[Array, Array]) -> None:
    """Add the scores of a batch; raise on all processes where any could not decode an image."""
    ids = np.asarray(output[1])
    if np.sum(ids >= 0) < batch.images:  # which every process sees
        raise InputError(next(filter(None, allgather_strings(batch.undecodable))))
    sums.add(ids, np.asarray(output[0]))


def make_predict_step(
    member: EvalModel, protocol: Protocol, stored: bool = False
) -> Callable[[Any, Any, dict[str, Array]], tuple[Array, Array]]:
    """The step (params, batch_stats, batch) -> (scores (images, classes) float32, ids).

    Scores are log-probabilities of the mean probability over the views, or mean logits, by
    `protocol.average`. stored: the images are arrays, and resized. The ids are returned with the
    scores because the order of rows over processes is that of the devices in the mesh.
    """
    model = as_fully_convolutional(member.model) if protocol.dense else member.model

    def step(params: Any, batch_stats: Any, batch: dict[str, Array]) -> tuple[Array, Array]:
        views, ends = batch["image"], batch["ends"]
        if protocol.mirror:
            views = jnp.concatenate([views, mirror_views(views, ends)], axis=1)
        count, of_each, *shape = views.shape
        images = normalize(views.reshape(count * of_each, *shape), member.dataset)
        if stored:
            images = resize(images, member.stored or member.crop)
        variables = {"params": params, "batch_stats": batch_stats}
        if protocol.dense and not needs_filled_arrays(model):
            logits = apply_to_valid_region(
                model, variables, images, jnp.repeat(ends, of_each, axis=0)
            )
        else:
            logits: Any = model.apply(variables, images, train=False)
        return average_views(logits.reshape(count, of_each, -1), protocol.average), batch["id"]

    return step


def mirror_views(views: Array, ends: Array) -> Array:
    """Mirror each view left to right; in one smaller than its array, what is outside stays there.

    views: (images, views, height, width, channels), ends: (images, 2).
    """
    width = views.shape[3]
    columns = (ends[:, 1:] - 1 - jnp.arange(width, dtype=ends.dtype)[None, :]) % width
    return jnp.take_along_axis(views, columns[:, None, None, :, None], axis=3)


def average_views(logits: Array, of: Average) -> Array:
    """Mean over an image's views: of logits, or the log of the mean of probabilities.

    logits: (images, views, classes) -> (images, classes) float32.
    """
    logits = logits.astype(jnp.float32)
    if of == "logits":
        return jnp.mean(logits, axis=1)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1) - math.log(logits.shape[1])


class _ScoreSums:
    """Scores of each image, summed over scales."""

    def __init__(self, of: Average, images: int) -> None:
        self._of = of
        self._seen = np.zeros(images, int)
        self._scores: np.ndarray | None = None

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """The scores of a batch's images, in any order; rows of id -1 are padding."""
        ids, rows = ids[ids >= 0], rows[ids >= 0]
        if self._scores is None:
            self._scores = np.full(
                (len(self._seen), rows.shape[1]), 0 if self._of == "logits" else -np.inf, np.float32
            )
        self._scores[ids] = (np.add if self._of == "logits" else np.logaddexp)(
            self._scores[ids], rows
        )
        self._seen[ids] += 1

    def mean(self, scales: int) -> np.ndarray:
        """Log-probabilities of all images."""
        if self._scores is None or not np.all(self._seen == scales):
            raise AssertionError(
                f"each image is seen at {scales} scales, not at {sorted(set(self._seen.tolist()))}"
            )
        if self._of == "logits":
            return log_softmax(self._scores / scales)
        return self._scores - np.float32(math.log(scales))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits, -inf allowed. scores: (images, classes)."""
    shifted = scores - np.max(scores, axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))


def ensemble(members: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the mean probability of several networks. members: log-probabilities of each."""
    return np.logaddexp.reduce(np.stack(members)) - np.float32(math.log(len(members)))


def restrict_to_classes(log_probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Log-probabilities renormalised over some classes, the others at -inf.

    So ImageNet-A and -R are tested, on the 200 classes that occur. For one view this is the softmax
    of those classes' logits (Hendrycks et al. 2019, arXiv:1907.07174); of several views the mean
    over all classes is taken first.
    """
    inside = np.isin(np.arange(log_probabilities.shape[1]), classes)
    return log_softmax(np.where(inside, log_probabilities, np.float32(-np.inf)))
