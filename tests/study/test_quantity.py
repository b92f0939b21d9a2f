"""Quantities: arithmetic of errors and measured values, seed by seed and image by image."""

import numpy as np
import pytest

from deepjax.study.arms.result import ArmResult
from deepjax.study.preset import Preset
from deepjax.study.quantity import error, log, mean, measured, slope
from deepjax.study.results import StudyResults
from tests.study import results as made

SEEDS = 3


def with_images(seed, pilot, selection=0.0):
    """An arm whose every image is wrong or right at random; `selection` in points."""
    random = np.random.default_rng(seed)
    wrong = {split: random.integers(0, 2, (SEEDS, 20)) for split in ("train", "test")}
    spread = {"train": 0.0, "test": selection / 100}
    return ArmResult(
        0.1, [], {k: v.astype(float) for k, v in wrong.items()}, "digits", pilot, spread
    )


ARMS = {
    "a": with_images(1, "a", selection=3.0),
    "b": with_images(2, "b", selection=4.0),
    "a_again": with_images(3, "a", selection=3.0),
}
MEASURED = [{"sigma": {"x": value}, "list": [1.0, value]} for value in (2.0, 4.0, 8.0)]
FOUND = StudyResults(Preset("digits", SEEDS), tuple(range(SEEDS)), ARMS, MEASURED)


def points(arm, split="test"):
    return 100 * ARMS[arm].misclassified[split]


def test_an_error_is_in_points_by_seed_and_by_image():
    sample = error("a").sample(FOUND, "train")
    np.testing.assert_array_equal(sample.by_image, points("a", "train"))
    np.testing.assert_allclose(sample.by_seed, points("a", "train").mean(1))
    assert (error("a").unit, error("a_again").name) == (" points", "a again")


def test_differences_sums_and_multiples():
    sample = (error("a") - error("b") * 2).sample(FOUND)
    np.testing.assert_allclose(sample.by_image, points("a") - 2 * points("b"))
    np.testing.assert_allclose(sample.by_seed, points("a").mean(1) - 2 * points("b").mean(1))
    both = (error("a") + error("b")).sample(FOUND)
    np.testing.assert_allclose(both.by_image, points("a") + points("b"))
    assert (error("a") - error("b")).name == "a less b"


def test_what_both_arms_have_in_common_is_not_in_their_difference():
    """Paired by seed."""
    offsets = (-0.1, 0.0, 0.1)
    found = made.results({"a": made.arm(0.3, 0.31, offsets), "b": made.arm(0.3, 0.3, offsets)})
    sample = (error("a") - error("b")).sample(found)
    np.testing.assert_allclose(sample.by_seed, 1.0)
    assert sample.by_seed.std() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (error("a"), 3.0),
        (error("a") - error("b"), 5.0),  # hypot(3, 4)
        (error("a") - error("a"), 0.0),
        (error("a") - error("a_again"), 0.0),  # A/A: of one pilot
        (error("a") + error("a_again"), 6.0),
        (error("a") - error("b") * 0.5, np.hypot(3, 2)),
        (measured("sigma", "x"), 0.0),
    ],
)
def test_the_error_of_selected_rates_is_of_independent_pilots(quantity, expected):
    """An arm that occurs twice has one pilot, whose error cancels or adds up."""
    assert quantity.sample(FOUND).selection == pytest.approx(expected)


def test_a_slope_is_that_of_least_squares_of_every_seed():
    x = {1.0: "a", 2.0: "b", 4.0: "a_again"}
    quantity = slope({at: error(arm) for at, arm in x.items()})
    values = np.array([points(arm).mean(1) for arm in x.values()])
    fits = np.polyfit(list(x), values, 1)[0]
    np.testing.assert_allclose(quantity.sample(FOUND).by_seed, fits)
    of_images = np.polyfit(list(x), np.array([points(arm).ravel() for arm in x.values()]), 1)[0]
    np.testing.assert_allclose(quantity.sample(FOUND).by_image.ravel(), of_images, atol=1e-9)
    assert (quantity.name, quantity.unit) == ("slope of a", " points")
    with pytest.raises(ValueError, match="two points or more, given 1"):
        slope({1.0: error("a")})


def test_measured_values_are_found_by_their_path_and_lists_are_averaged():
    sample = measured("sigma", "x").sample(FOUND)
    np.testing.assert_array_equal(sample.by_seed, [2, 4, 8])
    assert sample.by_image is None
    np.testing.assert_array_equal(measured("list").sample(FOUND).by_seed, [1.5, 2.5, 4.5])
    assert measured("sigma", "x", unit=" W").named("y").name == "y"


def test_the_logarithm_is_taken_before_the_mean_and_its_difference_is_a_ratio():
    np.testing.assert_allclose(log(measured("list")).sample(FOUND).by_seed, np.log([2, 4, 8]) / 2)
    ratio = log(measured("sigma", "x")) - log(measured("list"))
    np.testing.assert_allclose(ratio.sample(FOUND).by_seed, np.log([2, 4, 8]) / 2)
    power_law = slope({np.log(n): log(measured(n)) for n in (1.0, 2.0, 4.0)})
    found = made.results(measured=[{n: c * n**1.5 for n in (1.0, 2.0, 4.0)} for c in (1, 2)])
    np.testing.assert_allclose(power_law.sample(found).by_seed, 1.5)
    for wrong in (error("a"), measured("list") * 2, measured("list") - measured("list")):
        with pytest.raises(TypeError, match="one measured value"):
            log(wrong)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_logarithm_or_value_that_does_not_exist_is_not_a_number(value):
    found = made.results(measured=[{"x": value}, {"x": 2.0}])
    assert np.isnan(log(measured("x")).sample(found).by_seed).tolist() == [True, False]
    finite = np.isfinite(value)
    assert np.isnan(measured("x").sample(found).by_seed).tolist() == [not finite, False]


def test_a_mean_of_quantities():
    sample = mean(error("a"), error("b"), name="both").sample(FOUND)
    np.testing.assert_allclose(sample.by_image, (points("a") + points("b")) / 2)
    assert mean(error("a"), error("b"), name="both").name == "both"
    assert mean(error("a"), error("b"), name="both").arms == ("a", "b")


def test_errors_of_other_images_cannot_be_subtracted():
    other = made.arm(0.3, 0.3)
    found = made.results({"a": ARMS["a"], "other": other})
    with pytest.raises(ValueError, match="broadcast"):
        (error("a") - error("other")).sample(found)
