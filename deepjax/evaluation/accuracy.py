"""Top-k, its interval, and what a label is: pure functions of scores and labels, with a rule for ties and for NaN.

Labels are (images, most) integers, -1 where an image has fewer (`label_table` makes them): an image may have several right classes
or none (ReaL, Beyer et al. 2020, arXiv:2006.07159). Of equal scores the class with the smaller number comes first, as in argmax.
An image with a NaN among its scores is right for no k.
"""

import math
from collections.abc import Sequence

import numpy as np

from deepjax.errors import require


def label_table(labels: Sequence[int | Sequence[int]]) -> np.ndarray:
    """One or several classes an image, or none -> (images, most of an image, at least 1) int32, filled up with -1.

    >>> label_table([[3, 1], [], [2]]).tolist()
    [[3, 1], [-1, -1], [2, -1]]
    """
    sets = [np.atleast_1d(np.asarray(label, np.int32)) for label in labels]
    table = np.full((len(sets), max((len(each) for each in sets), default=1) or 1), -1, np.int32)
    for row, each in zip(table, sets, strict=True):
        row[: len(each)] = each
    return table


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place of each image's best label among its scores: 0 where it is the largest, `classes` where it has none or a NaN.

    scores: (images, classes), logits or probabilities; labels: (images, most) or (images,) -> (images,) ints.
    """
    classes = scores.shape[1]
    best = np.full(len(scores), classes)
    for label in labels.reshape(len(labels), -1).T:
        own = np.take_along_axis(scores, np.maximum(label, 0)[:, None].astype(np.intp), axis=1)
        earlier = np.arange(classes) < label[:, None]
        before = np.sum((scores > own) | ((scores == own) & earlier), axis=1)
        best = np.where(label >= 0, np.minimum(best, before), best)
    return np.where(np.isnan(scores).any(axis=1), classes, best)


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether one of an image's labels is among its k largest scores. scores: (images, classes), labels as above -> (images,) bool.

    Raises InputError for a k that is no number of classes.
    """
    require(1 <= k <= scores.shape[1], "k", k, f"1 to {scores.shape[1]} (the classes)")
    return label_ranks(scores, labels) < k


def count_top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> tuple[int, int]:
    """(right, counted) images: those that have a label count."""
    counted = np.any(labels.reshape(len(labels), -1) >= 0, axis=1)
    return int(np.sum(top_k(scores, labels, k) & counted)), int(np.sum(counted))


def wilson_interval(right: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson 1927): it lies within 0 and 1, and is right for few images and near the ends.

    >>> [round(end, 4) for end in wilson(0, 10)]
    [0.0, 0.2775]
    """
    require(
        0 <= right <= images and images >= 1,
        "right",
        right,
        f"0 to the number of images, here {images}, which is 1 or more",
    )
    share, spread = right / images, z * z / images
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / images + spread / images / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
