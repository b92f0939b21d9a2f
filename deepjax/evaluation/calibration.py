"""Calibration of a network's confidence: calibration error, likelihood and Brier score."""

import numpy as np

from deepjax.errors import require

BINS = 15  # Guo et al. 2017, section 2; Table 1


def calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS, adaptive: bool = False
) -> float:
    """Expected calibration error: mean |accuracy - confidence| over bins, weighted by their images.

    confidence: (images,) probability of the predicted class; correct: (images,) whether it is the
    label -> a fraction (ECE; Guo et al. 2017, arXiv:1706.04599, eq. 3). Bins are of equal width, (i
    / bins, (i + 1) / bins]; `adaptive`: of equal counts in the order of confidence, ties in stored
    order (Nguyen and O'Connor 2015, arXiv:1508.05154). 0 for no images, NaN where a confidence is.
    """
    require(bins >= 1, "bins", bins, "1 or more")
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if not len(confidence):
        return 0.0
    if np.isnan(confidence).any():
        return float("nan")
    if adaptive:
        parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
        gaps = [abs(np.sum(correct[part] - confidence[part])) for part in parts]
    else:
        index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        gaps = np.abs(np.bincount(index, correct - confidence, minlength=bins))
    return float(np.sum(gaps) / len(confidence))


def negative_log_likelihood(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(label) in nats. log_probabilities: (images, classes), labels: (images,)."""
    own = np.take_along_axis(log_probabilities, labels[:, None].astype(np.intp), axis=1)
    return float(-np.mean(own, dtype=np.float64))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Brier score (1950), 0 to 2: mean squared distance of probabilities from the one-hot label.

    probabilities: (images, classes), labels: (images,).
    """
    own = np.take_along_axis(probabilities, labels[:, None].astype(np.intp), axis=1)[:, 0].astype(
        np.float64
    )
    squares = np.sum(np.square(probabilities, dtype=np.float64), axis=1)
    return float(np.mean(squares - 2 * own + 1))
