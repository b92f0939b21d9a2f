"""Kernels and training of wide networks approach the limit of infinite width."""

import numpy as np
import pytest

from deepjax.analysis.ntk.drift import kernel_drift
from deepjax.analysis.ntk.linearised import linearised_training
from tests.analysis.ntk.ntk_cases import Wide, gaussian, init

WIDTHS, SEEDS, EXAMPLES = (64, 256, 1024, 4096), 6, 8


def arc_cosine(x):
    """The limit of `Wide`: Cho and Saul 2009 (degrees 0 and 1), Jacot et al. 2018 (recursion)."""
    x = np.asarray(x, float)
    lengths, size = np.linalg.norm(x, axis=1), x.shape[1]
    products = x @ x.T
    angles = np.arccos(np.clip(products / np.outer(lengths, lengths), -1, 1))
    second = (
        np.outer(lengths, lengths)
        / size
        * (np.sin(angles) + (np.pi - angles) * np.cos(angles))
        / np.pi
    )
    return second + products / size * (np.pi - angles) / np.pi


@pytest.fixture(scope="module")
def wide_runs():
    """(widths, 4): means over seeds.

    Distance of the kernel from its limit, its drift, error of the linearisation, 1 - alignment.
    """
    x, y = gaussian((EXAMPLES, 6)), gaussian((EXAMPLES, 1), 1)
    limit, found = arc_cosine(x), []
    for width in WIDTHS:
        numbers = []
        for seed in range(SEEDS):
            variables = init(Wide(width), x, seed)
            run = linearised_training(Wide(width), variables, (x, y), steps=60, learning_rate=0.5)
            drift = kernel_drift(Wide(width), variables, {"params": run.params}, x)
            away = np.linalg.norm(drift.kernel_0.matrix - limit) / np.linalg.norm(limit)
            numbers.append((away, drift.drift, run.rmse[-1], 1 - drift.alignment))
        found.append(np.mean(numbers, 0))
    return np.array(found)


def slope(values):
    return np.polyfit(np.log(WIDTHS), np.log(values), 1)[0]


def test_the_kernel_approaches_that_of_infinite_width_as_one_over_the_root(wide_runs):
    """A Monte Carlo estimate with one sample per unit (Novak et al. 2019, arXiv:1912.02803)."""
    assert -0.65 < slope(wide_runs[:, 0]) < -0.35
    assert wide_runs[-1, 0] < 0.05


def test_drift_falls_with_width(wide_runs):
    """At most 1 / sqrt(width) in theory, about 1 / width measured (Lee et al. 2019, Figure 1)."""
    assert -1.3 < slope(wide_runs[:, 1]) < -0.4
    assert (wide_runs[:, 3] >= 0).all() and wide_runs[-1, 3] < 1e-3


def test_the_linearisation_becomes_exact_with_width(wide_runs):
    """Lee et al. 2019, theorem 2.1: the distance is at most of the order 1 / sqrt(width)."""
    assert -1.3 < slope(wide_runs[:, 2]) < -0.4
