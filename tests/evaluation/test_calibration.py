"""Calibration error by hand and for known calibration; likelihood and Brier score by definition."""

import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.evaluation.calibration import brier, calibration_error, negative_log_likelihood


def test_by_hand():
    """Five bins: (0.2, 0.4] has 0.3, 0.4, one correct: |1 - 0.7|; (0.8, 1] 0.9, 1.0, both.

    |2 - 1.9|.
    """
    confidence, right = np.array([0.3, 0.9, 0.4, 1.0]), np.array([True, True, False, True])
    assert calibration_error(confidence, right, bins=5) == pytest.approx((0.3 + 0.1) / 4)
    # two of equally many: 0.3 and 0.4, 0.9 and 1.0
    assert calibration_error(confidence, right, bins=2, adaptive=True) == pytest.approx(
        (0.3 + 0.1) / 4
    )


def test_adaptive_bins_differ_where_confidences_crowd():
    """0.91 to 0.94 are in one bin of width 1/5, where their gaps cancel; alone each is off."""
    confidence, right = np.array([0.91, 0.92, 0.93, 0.94]), np.array([1, 1, 1, 0])
    assert calibration_error(confidence, right, bins=5) == pytest.approx(abs(3 - 3.70) / 4)
    assert calibration_error(confidence, right, bins=4, adaptive=True) == pytest.approx(
        (0.09 + 0.08 + 0.07 + 0.94) / 4
    )


@pytest.mark.parametrize("value", [0.0, 0.2, 1.0])
def test_edges_belong_to_the_bin_below(value):
    """(i / bins, (i + 1) / bins], 0 in the first.

    A single image is off by its own gap in any bin.
    """
    assert calibration_error(np.array([value]), np.array([True]), bins=5) == pytest.approx(
        1 - value
    )
    together = calibration_error(np.array([value, max(0.0, value - 0.1)]), np.array([1, 0]), bins=5)
    assert together == pytest.approx(abs(1 - value - max(0.0, value - 0.1)) / 2)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_calibrated_model_has_none_and_an_overconfident_one_its_excess(adaptive):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 0.9, 200_000)
    right = rng.uniform(size=confidence.shape) < confidence
    # the noise of 15 bins of 13,000
    assert calibration_error(confidence, right, adaptive=adaptive) < 0.005
    assert calibration_error(confidence + 0.1, right, adaptive=adaptive) == pytest.approx(
        0.1, abs=0.003
    )


def test_nothing_and_nan():
    assert calibration_error(np.array([]), np.array([])) == 0.0
    assert np.isnan(calibration_error(np.array([np.nan, 0.5]), np.array([0, 1])))
    with pytest.raises(InputError, match="bins is 0"):
        calibration_error(np.array([0.5]), np.array([1]), bins=0)


def test_likelihood_and_brier():
    """Uniform: log(classes), and 1 - 1 / classes; sure and right: 0 and 0; sure and wrong.

    2 (Brier 1950).
    """
    uniform, labels = np.full((3, 8), 1 / 8), np.array([0, 5, 7])
    assert negative_log_likelihood(np.log(uniform), labels) == pytest.approx(np.log(8))
    assert brier(uniform, labels) == pytest.approx(1 - 1 / 8)
    sure = np.eye(8)[labels]
    assert brier(sure, labels) == 0 and brier(sure, (labels + 1) % 8) == 2
    probabilities = np.random.default_rng(0).dirichlet(np.ones(8), 3)
    by_hand = [
        sum((probabilities[i, c] - (c == labels[i])) ** 2 for c in range(8)) for i in range(3)
    ]
    assert brier(probabilities, labels) == pytest.approx(np.mean(by_hand))
