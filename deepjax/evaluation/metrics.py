"""Classification metrics of a data set, and their text."""

import dataclasses
import math
from typing import Any

import numpy as np

from deepjax.data import Dataset
from deepjax.errors import require
from deepjax.evaluation.accuracy import count_top_k, top_k, wilson_interval
from deepjax.evaluation.calibration import brier, calibration_error, negative_log_likelihood
from deepjax.evaluation.paper_results import PaperResult
from deepjax.evaluation.predict import restrict_to_classes

# tfds's builders of data sets with 200 of ImageNet's classes
FEWER_CLASSES = (
    "imagenet_a",
    "imagenet_r",
)
MIN_CLASSES = 10  # with fewer, top-5 means little


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics:
    """Metrics of a data set; errors are fractions of the counted images, those with a label."""

    dataset: str
    images: int
    counted: int
    classes: int
    top1_error: float
    top1_interval: tuple[float, float]
    """Wilson's, of 95 %."""
    top5_error: float | None
    top5_interval: tuple[float, float] | None
    ece: float | None
    """Expected calibration error, 15 bins of equal width; None where all scores are NaN."""
    ece_adaptive: float | None
    """The same with 15 bins of equal counts."""
    nll: float | None
    """Mean -log p(label) in nats; None where images have several labels, or where it is infinite.
    """
    brier: float | None
    not_finite: int
    """Images with a NaN among their scores: wrong for every k, excluded from ECE, NLL and Brier."""


def compute_metrics(
    log_probabilities: np.ndarray, labels: np.ndarray, dataset: Dataset
) -> ClassificationMetrics:
    """Metrics from log-probabilities (images, classes) and labels (images, max labels; -1: none).

    On ImageNet-A and -R the prediction is restricted to the classes that occur. Raises InputError
    where no image has a label.
    """
    images, classes = log_probabilities.shape
    own = np.any(labels >= 0, axis=1)
    require(
        bool(own.any()),
        "dataset",
        dataset.name,
        f"one with labels; none of its {images} images has any",
    )
    occurring = occurring_classes(labels, dataset)
    if occurring is not None:
        classes, log_probabilities = (
            len(occurring),
            restrict_to_classes(log_probabilities, occurring),
        )
    correct1, counted = count_top_k(log_probabilities, labels, 1)
    has_top5 = classes >= MIN_CLASSES
    correct5 = count_top_k(log_probabilities, labels, 5)[0] if has_top5 else 0
    finite = own & ~np.isnan(log_probabilities).any(axis=1)
    some, (kept, of) = bool(finite.any()), (log_probabilities[finite], labels[finite])
    confidence, correct = np.exp(np.max(kept, axis=1)), top_k(log_probabilities, labels, 1)[finite]
    one_each = some and labels.shape[1] == 1
    return ClassificationMetrics(
        dataset=dataset.name,
        images=images,
        counted=counted,
        classes=classes,
        top1_error=1 - correct1 / counted,
        top1_interval=_error_interval(correct1, counted),
        top5_error=1 - correct5 / counted if has_top5 else None,
        top5_interval=_error_interval(correct5, counted) if has_top5 else None,
        ece=calibration_error(confidence, correct) if some else None,
        ece_adaptive=calibration_error(confidence, correct, adaptive=True) if some else None,
        nll=_finite(negative_log_likelihood(kept, of[:, 0])) if one_each else None,
        brier=brier(np.exp(kept), of[:, 0]) if one_each else None,
        not_finite=int(np.sum(np.isnan(log_probabilities).any(axis=1))),
    )


def occurring_classes(labels: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """The classes to which predictions are restricted; None: all of the data set's."""
    fewer = dataset.builder.split("/")[0] in FEWER_CLASSES
    return np.unique(labels[labels >= 0]) if fewer else None


def format_metrics(found: ClassificationMetrics, papers: list[PaperResult]) -> list[str]:
    """Lines to print: the count of images first, then the metrics, then published results."""
    of = (
        f"{found.counted:,} of {found.images:,} images"
        if found.counted < found.images
        else f"{found.images:,} images"
    )
    parts = [f"top-1 error {_percent(found.top1_error, found.top1_interval)}"]
    if found.top5_error is not None and found.top5_interval is not None:
        parts.append(f"top-5 error {_percent(found.top5_error, found.top5_interval)}")
    if found.ece is not None and found.ece_adaptive is not None:
        parts.append(f"ECE {100 * found.ece:.2f} % (adaptive {100 * found.ece_adaptive:.2f} %)")
    parts += [
        f"{name} {value:.3f}"
        for name, value in (("NLL", found.nll), ("Brier", found.brier))
        if value is not None
    ]
    if found.not_finite:
        parts.append(
            f"NOT FINITE: {found.not_finite} images, wrong, excluded from ECE, NLL and Brier"
        )
    return [
        f"{found.dataset}: {of} of {found.classes} classes; {'; '.join(parts)}",
        *map(_format_paper, papers),
    ]


def metrics_row(found: ClassificationMetrics) -> dict[str, Any]:
    """The row of result.json."""
    return dataclasses.asdict(found)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _error_interval(correct: int, counted: int) -> tuple[float, float]:
    low, high = wilson_interval(correct, counted)
    return 1 - high, 1 - low


def _percent(error: float, interval: tuple[float, float]) -> str:
    return f"{100 * error:.2f} % [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def _format_paper(paper: PaperResult) -> str:
    errors = " / ".join(
        "-" if error is None else f"{error:g}" for error in (paper.top1, paper.top5)
    )
    sides = ", ".join(map(str, paper.sides))
    note = f"; {paper.note}" if paper.note else ""
    how = f"{paper.protocol} of {paper.crop} at {sides}"
    return f"  published: top-1 / top-5 error {errors} % ({paper.source}; {how}{note})"
