"""Top-k accuracy and its confidence interval: pure functions of scores and labels.

Labels are (images, max labels) integers, -1 where an image has fewer (`label_table` makes them): an
image may have several correct classes or none (ReaL, Beyer et al. 2020, arXiv:2006.07159). Of equal
scores the class with the smaller number ranks first, as in argmax. An image with a NaN among its
scores is correct for no k.
"""

import math
from collections.abc import Sequence

import numpy as np

from deepjax.errors import require


def label_table(labels: Sequence[int | Sequence[int]]) -> np.ndarray:
    """Labels, one or several per image or none -> (images, max labels) int32, padded by -1.

    >>> label_table([[3, 1], [], [2]]).tolist()
    [[3, 1], [-1, -1], [2, -1]]
    """
    sets = [np.atleast_1d(np.asarray(label, np.int32)) for label in labels]
    table = np.full((len(sets), max((len(each) for each in sets), default=1) or 1), -1, np.int32)
    for row, each in zip(table, sets, strict=True):
        row[: len(each)] = each
    return table


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rank of each image's best label: 0 is the top score; `classes` for no label or a NaN.

    scores: (images, classes), logits or probabilities; labels: (images, max labels) or (images,) ->
    (images,) ints.
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
    """Whether one of an image's labels is among its k best scores: (images,) bool.

    scores: (images, classes); labels as above. Raises InputError for k outside 1 to classes.
    """
    require(1 <= k <= scores.shape[1], "k", k, f"1 to {scores.shape[1]} (the classes)")
    return label_ranks(scores, labels) < k


def count_top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> tuple[int, int]:
    """(correct, counted) images; only images with a label are counted."""
    counted = np.any(labels.reshape(len(labels), -1) >= 0, axis=1)
    return int(np.sum(top_k(scores, labels, k) & counted)), int(np.sum(counted))


def wilson_interval(correct: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy (Wilson 1927), within 0 and 1.

    It has the right coverage for few images and near the ends too.

    >>> [round(end, 4) for end in wilson_interval(0, 10)]
    [0.0, 0.2775]
    """
    require(
        0 <= correct <= images and images >= 1,
        "correct",
        correct,
        f"0 to the number of images, here {images}, which is 1 or more",
    )
    accuracy, spread = correct / images, z * z / images
    centre = (accuracy + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(accuracy * (1 - accuracy) / images + spread / images / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
