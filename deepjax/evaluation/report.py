"""What an evaluation found on one data set, in numbers and in lines."""

import dataclasses
from typing import Any

import numpy as np

from deepjax.data import Dataset
from deepjax.evaluation.calibration import brier, calibration_error, negative_log_likelihood
from deepjax.evaluation.predict import among
from deepjax.evaluation.published import Published
from deepjax.evaluation.scores import count_top_k, top_k, wilson

FEWER_CLASSES = ("imagenet_a", "imagenet_r")  # tfds's builders of sets that have 200 of ImageNet's classes
MIN_CLASSES = 10  # with fewer, one of five guesses is nothing to be proud of


@dataclasses.dataclass(frozen=True)
class Found:
    """Errors are fractions of the images that count: all, but for those without a label (ReaL)."""

    dataset: str
    images: int
    counted: int
    classes: int
    top1_error: float
    top1_interval: tuple[float, float]
    """Wilson's, of 95 %."""
    top5_error: float | None
    top5_interval: tuple[float, float] | None
    ece: float
    """Expected calibration error, 15 bins of equal width."""
    ece_adaptive: float
    """The same with 15 bins of equally many images."""
    nll: float | None
    """Mean -log p(label) in nats; None where images have several labels."""
    brier: float | None
    not_finite: int
    """Images with a NaN among their scores, which are wrong for every k."""


def find(log_probabilities: np.ndarray, labels: np.ndarray, dataset: Dataset) -> Found:
    """Score the log-probabilities (images, classes) of every image of a set. labels: (images, most of an image), -1: none.

    On ImageNet-A and -R only the classes that occur are guessed among.
    """
    images, classes = log_probabilities.shape
    if dataset.builder.split("/")[0] in FEWER_CLASSES:
        occurring = np.unique(labels[labels >= 0])
        classes, log_probabilities = len(occurring), among(log_probabilities, occurring)
    right, counted = count_top_k(log_probabilities, labels, 1)
    has_top5 = classes >= MIN_CLASSES
    right5 = count_top_k(log_probabilities, labels, 5)[0] if has_top5 else 0
    own = np.any(labels >= 0, axis=1)
    confidence = np.exp(np.max(log_probabilities[own], axis=1))
    correct = top_k(log_probabilities[own], labels[own], 1)
    one_each = labels.shape[1] == 1
    return Found(
        dataset=dataset.name,
        images=images,
        counted=counted,
        classes=classes,
        top1_error=1 - right / counted,
        top1_interval=_of_error(right, counted),
        top5_error=1 - right5 / counted if has_top5 else None,
        top5_interval=_of_error(right5, counted) if has_top5 else None,
        ece=calibration_error(confidence, correct),
        ece_adaptive=calibration_error(confidence, correct, adaptive=True),
        nll=negative_log_likelihood(log_probabilities, labels[:, 0]) if one_each else None,
        brier=brier(np.exp(log_probabilities), labels[:, 0]) if one_each else None,
        not_finite=int(np.sum(np.isnan(log_probabilities).any(axis=1))),
    )


def lines(found: Found, beside: list[Published]) -> list[str]:
    """What is printed: the count first, then the errors, and the paper's beside them."""
    of = f"{found.counted:,} of {found.images:,} images" if found.counted < found.images else f"{found.images:,} images"
    parts = [f"top-1 error {_percent(found.top1_error, found.top1_interval)}"]
    if found.top5_error is not None and found.top5_interval is not None:
        parts.append(f"top-5 error {_percent(found.top5_error, found.top5_interval)}")
    parts.append(f"ECE {100 * found.ece:.2f} % (adaptive {100 * found.ece_adaptive:.2f} %)")
    if found.nll is not None:
        parts.append(f"NLL {found.nll:.3f}, Brier {found.brier:.3f}")
    if found.not_finite:
        parts.append(f"NOT FINITE: {found.not_finite} images")
    return [f"{found.dataset}: {of} of {found.classes} classes; {'; '.join(parts)}", *map(_beside, beside)]


def row(found: Found) -> dict[str, Any]:
    """For result.json."""
    return dataclasses.asdict(found)


def _of_error(right: int, counted: int) -> tuple[float, float]:
    low, high = wilson(right, counted)
    return 1 - high, 1 - low


def _percent(error: float, interval: tuple[float, float]) -> str:
    return f"{100 * error:.2f} % [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def _beside(paper: Published) -> str:
    errors = " / ".join("-" if error is None else f"{error:g}" for error in (paper.top1, paper.top5))
    sides = ", ".join(map(str, paper.sides))
    note = f"; {paper.note}" if paper.note else ""
    return f"  published: top-1 / top-5 error {errors} % ({paper.source}; {paper.protocol} at {sides}{note})"
