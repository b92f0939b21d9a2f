"""The simulation of the procedure: its null studies have no effect."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "benchmarks"
STUDIES = 300


@pytest.fixture
def procedure(monkeypatch):
    """The script, whose neighbours it imports by their names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("procedure")


@pytest.mark.parametrize("kind", ["compared on training images", "2 points worse, not worse by 2"])
def test_studies_with_nothing_to_find_find_something_in_at_most_one_of_twenty(kind, procedure):
    p_values = procedure.simulate(procedure.KINDS[kind], STUDIES).p_values()
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / STUDIES)
    assert procedure.rate(p_values, 0.05)["rate"] < most


def test_a_large_effect_is_found(procedure):
    found = procedure.simulate(procedure.Kind(noise=0.3), 100)
    assert procedure.rate(found.p_values(5.0), 0.0025)["rate"] > 0.9


def test_both_arms_have_one_error_at_their_own_best_rates(procedure):
    random = np.random.default_rng(0)
    for name, kind in procedure.KINDS.items():
        for optimum in random.uniform(-1.5, 1.5, 5):
            train = {at: procedure.true_error(kind, optimum, at, "train") for at in range(-6, 7)}
            best = procedure.best_octave(kind, optimum)
            assert min(train, key=train.__getitem__) == best, name
            for split in ("train", "test"):
                error = procedure.true_error(kind, optimum, best, split)
                assert error == pytest.approx(procedure.ERROR)


@pytest.mark.parametrize("shape", ["normal", "lognormal", "heavy-tailed"])
def test_noise_has_mean_0_and_deviation_1(shape, procedure):
    noise = procedure.standardised(shape, (200_000,), np.random.default_rng(0))
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.1)  # of Student's t with 3 degrees: slowly


def test_runs_misclassify_as_many_images_as_their_error_says(procedure):
    """On average, with the variance of 4,000 images; both arms mostly the same ones."""
    random, errors = np.random.default_rng(0), np.array([0.1, 0.2])
    means, agree = [], []
    for _ in range(2000):
        common = random.standard_normal(procedure.IMAGES)
        one, other = (procedure.misclassified_images(errors, common, random) for _ in range(2))
        means.append(one.mean(1))
        agree.append(np.corrcoef(one[0], other[0])[0, 1])
    np.testing.assert_allclose(np.mean(means, 0), errors, atol=0.001)
    np.testing.assert_allclose(np.var(means, 0), errors * (1 - errors) / 4000, rtol=0.15)
    assert 0.3 < np.mean(agree) < 0.6


def test_families_are_corrected_by_holm(procedure):
    p_values = [0.002, *[0.5] * 19, 0.003, *[0.5] * 19]
    assert procedure.family_rate(p_values)["rate"] == 0.5
