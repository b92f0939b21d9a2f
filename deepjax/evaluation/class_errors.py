"""Errors by class, and the confusion table of few classes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepjax.data import Dataset
from deepjax.evaluation.metrics import occurring_classes
from deepjax.evaluation.predict import restrict_to_classes

MAX_CONFUSION_CLASSES = 100  # more are no table that anybody reads
WORST_CLASSES = 5  # the printed ones


@dataclasses.dataclass(frozen=True)
class ClassError:
    """Top-1 errors among the images of a class."""

    label: str
    images: int
    errors: int

    @property
    def error(self) -> float:
        """The fraction of the images, 0 where there are none."""
        return self.errors / max(1, self.images)


@dataclasses.dataclass(frozen=True)
class ClassErrors:
    """Errors of every class in the order of the labels, and of few classes their confusion."""

    classes: list[ClassError]
    confusion: list[list[int]] | None
    """Images by label (row) and prediction (column); None for more than 100 classes. An image with
    a NaN among its scores is in its class's errors and in no column."""


def class_errors(
    log_probabilities: np.ndarray, labels: np.ndarray, dataset: Dataset, names: Sequence[str]
) -> ClassErrors | None:
    """Errors by class from log-probabilities (images, classes) and labels (images, max labels).

    names: of all classes. None where images have several labels (ReaL), which belong to no one
    class. Images without a label do not count. Predictions are those of `compute_metrics`.
    """
    if labels.shape[1] > 1:
        return None
    occurring = occurring_classes(labels, dataset)
    if occurring is not None:
        log_probabilities = restrict_to_classes(log_probabilities, occurring)
    labelled = labels[:, 0] >= 0
    label, scores = labels[labelled, 0], log_probabilities[labelled]
    classes = scores.shape[1]
    images = np.bincount(label, minlength=classes)
    finite = ~np.isnan(scores).any(axis=1)
    pairs = label[finite] * classes + np.argmax(scores[finite], axis=1)
    table = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    errors = (images - np.diagonal(table)).tolist()
    rows = [ClassError(*each) for each in zip(names, images.tolist(), errors, strict=True)]
    return ClassErrors(rows, table.tolist() if classes <= MAX_CONFUSION_CLASSES else None)


def format_class_errors(found: ClassErrors) -> list[str]:
    """A line with the classes of the greatest error; none where nothing is misclassified."""
    worst = sorted((each for each in found.classes if each.errors), key=lambda each: -each.error)
    shown = [
        f"{each.label} {100 * each.error:.1f} % of {each.images:,}"
        for each in worst[:WORST_CLASSES]
    ]
    return [f"  classes with the greatest error: {', '.join(shown)}"] if shown else []


def class_errors_row(found: ClassErrors | None) -> dict[str, Any]:
    """The part of a row of result.json: "classes", and "confusion" of few classes."""
    if found is None:
        return {}
    classes = [dataclasses.asdict(each) | {"error": each.error} for each in found.classes]
    return {"classes": classes} | ({"confusion": found.confusion} if found.confusion else {})
