"""Intervals against closed forms, and against crossed random effects that are simulated."""

import numpy as np
import pytest
import scipy.stats

from deepjax.study.stats.intervals import (
    Components,
    Interval,
    Sample,
    combined,
    complete_interval,
    components,
    mean_interval,
    seeds_interval,
)

# Standard deviations of the parts of seeds, of images and of the rest.
SEED, IMAGE, REST = 1.0, 4.0, 6.0
SEEDS, IMAGES = 6, 50


def crossed(random, mean=0.0):
    """Values of seeds x images with these parts."""
    return (
        mean
        + SEED * random.standard_normal((SEEDS, 1))
        + IMAGE * random.standard_normal(IMAGES)
        + REST * random.standard_normal((SEEDS, IMAGES))
    )


def sample_of(values, selection=0.0):
    return Sample(values.mean(1), values, selection)


def test_two_seeds_and_two_images_by_hand():
    """[[1, 3], [5, 11]]: means by seed 2, 8; by image 3, 7; every rest is 1 or -1, in sum 4."""
    found = components(sample_of(np.array([[1.0, 3.0], [5.0, 11.0]])))
    assert found.seeds**2 == pytest.approx(18 / 2)  # variance of 2 and 8, of two seeds
    # Variance of 3 and 7, less the rest's mean square of 4 over two seeds; of two images.
    assert found.images**2 == pytest.approx((8 - 4 / 2) / 2)
    assert found.selection == 0


def test_errors_by_source_are_those_of_the_simulated_effects():
    """Over seeds alone: by repetition with the same images; over both: with other images."""
    random = np.random.default_rng(0)
    found = [components(sample_of(crossed(random))) for _ in range(2000)]
    of_seeds = SEED**2 / SEEDS + REST**2 / (SEEDS * IMAGES)
    assert np.mean([each.seeds**2 for each in found]) == pytest.approx(of_seeds, rel=0.06)
    assert np.mean([each.images**2 for each in found]) == pytest.approx(IMAGE**2 / IMAGES, rel=0.06)
    means = [crossed(random).mean() for _ in range(4000)]
    assert np.var(means) == pytest.approx(of_seeds + IMAGE**2 / IMAGES, rel=0.08)


def test_images_that_agree_by_chance_alone_add_nothing():
    """An estimate of a variance below 0 counts as 0."""
    values = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert components(sample_of(values)).images == 0


def test_the_complete_interval_covers_the_mean_of_all_seeds_and_images():
    random = np.random.default_rng(1)
    complete, over_seeds, trials = 0, 0, 2000
    for _ in range(trials):
        sample = sample_of(crossed(random, mean=3.0))
        for_all, for_seeds = complete_interval(sample).bounds(), seeds_interval(sample).bounds()
        complete += for_all[0] <= 3.0 <= for_all[1]
        over_seeds += for_seeds[0] <= 3.0 <= for_seeds[1]
    assert 0.945 < complete / trials < 0.98
    assert over_seeds / trials < 0.9  # which is for these images


@pytest.mark.parametrize("of_seeds", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("level", [0.05, 0.0025])
def test_false_positives_are_at_most_nominal_where_errors_of_two_sources_are_added(of_seeds, level):
    """Variances of six seeds and of images in several proportions, estimated as they would be.

    By Satterthwaite's degrees of freedom alone, twice 0.25 % at a proportion of 0.8.
    """
    random, trials = np.random.default_rng(0), 20_000
    seeds = np.sqrt(of_seeds * random.chisquare(5, trials) / 5)
    images = np.sqrt((1 - of_seeds) * random.chisquare(3999, trials) / 3999)
    effects = random.standard_normal(trials)
    found = [combined(Components(*each, 0.0), 6, 4000) for each in zip(seeds, images, strict=True)]
    t = np.abs(effects) / [error for error, _ in found]
    p = 2 * scipy.stats.t.sf(t, [freedom for _, freedom in found])
    assert np.mean(p <= level) < level + 3 * np.sqrt(level / trials)


def test_one_source_has_its_own_degrees_of_freedom():
    assert combined(Components(2.0, 0.0, 0.0), 6, 4000) == (2.0, pytest.approx(5))
    assert combined(Components(0.0, 2.0, 0.0), 6, 4000) == (2.0, pytest.approx(3999))
    assert combined(Components(0.0, 0.0, 0.0), 6, 4000) == (0.0, 5.0)
    _, freedom = combined(Components(1.0, 1.0, 0.0), 6, 4000)
    assert 5 < freedom < 20  # Satterthwaite's


def test_the_selection_of_rates_widens_the_interval():
    values = np.array([1.0, 2.0, 4.0])
    alone, selected = Sample(values), Sample(values, selection=3.0)
    assert complete_interval(selected).error == pytest.approx(
        np.hypot(complete_interval(alone).error, 3.0)
    )
    assert seeds_interval(selected) == seeds_interval(alone)


def test_the_mean_has_students_interval():
    values = [2.0, 3.0, 7.0]
    expected = scipy.stats.t.interval(0.95, 2, loc=4.0, scale=scipy.stats.sem(values))
    assert mean_interval(values).bounds() == pytest.approx(expected)
    assert mean_interval(values) == complete_interval(Sample(np.array(values)))


@pytest.mark.parametrize("bound", [-1.0, 0.5, 3.0])
def test_p_values_are_those_of_the_t_test(bound):
    values = [2.0, 3.0, 7.0, -1.0]
    p = scipy.stats.ttest_1samp(values, bound).pvalue
    interval = mean_interval(values)
    above = np.mean(values) > bound
    assert interval.p_above(bound) == pytest.approx(p if above else 1.0)
    assert interval.p_below(bound) == pytest.approx(1.0 if above else p)


def test_equal_values_leave_no_doubt():
    interval = mean_interval([0.25, 0.25])
    assert interval == Interval(0.25, 0.0, 1.0) and interval.bounds() == (0.25, 0.25)
    assert interval.p_above(0.0) == 0.0 and interval.p_above(0.25) == 1.0


def test_one_seed_gives_no_interval():
    with pytest.raises(ValueError, match="at least two seeds, given 1"):
        mean_interval([1.0])
