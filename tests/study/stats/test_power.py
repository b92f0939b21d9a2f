"""Power against simulated t-tests, and what would settle a claim."""

import math

import numpy as np
import pytest

from deepjax.study.stats.intervals import Components, Sample, complete_interval, components
from deepjax.study.stats.power import (
    MOST_SEEDS,
    joint_power,
    power,
    power_with,
    scaled_errors,
    what_settles,
)
from deepjax.study.stats.rules import above, within


@pytest.mark.parametrize(("seeds", "effect"), [(6, 1.0), (6, 2.0), (12, 1.0)])
@pytest.mark.parametrize("level", [0.05, 0.0025])
def test_it_is_how_often_a_simulated_effect_is_found(seeds, effect, level):
    random = np.random.default_rng(0)
    values = effect + random.standard_normal((4000, seeds))
    found = np.mean([complete_interval(Sample(each)).p_above(0) <= level for each in values])
    expected = power(1 / math.sqrt(seeds), seeds - 1, effect, level)
    assert found == pytest.approx(expected, abs=0.025)


@pytest.mark.parametrize("level", [0.05, 0.0025])
def test_a_claim_of_several_bounds_and_parts_has_less_power_than_each(level):
    """Both of two means in the middle of a region, simulated: Bonferroni's bound is below."""
    rule, random, seeds = within(-2.5, 2.5), np.random.default_rng(0), 10
    samples = random.standard_normal((3000, 2, seeds)) * 1.5
    found = np.mean(
        [
            rule.decide([complete_interval(Sample(part)) for part in parts], level).outcome
            == "supported"
            for parts in samples
        ]
    )
    part = Components(1.5 / math.sqrt(seeds), 0.0, 0.0)
    alone = power_with(part, seeds, 1, 2.5, level)
    joint = joint_power([part, part], seeds, 1, rule.distances(2.5), level)
    assert rule.distances(2.5) == [2.5, 2.5] and above(0).distances(1.0) == [1.0]
    assert joint - 0.02 <= found < alone
    assert joint_power([Components(9.0, 0.0, 0.0)] * 2, seeds, 1, [1.0], level) == 0.0


def test_without_an_error_every_effect_is_found():
    assert power(0.0, 5, 0.1) == 1.0


def test_more_seeds_and_more_images_divide_their_parts():
    found = scaled_errors(Components(seeds=2.0, images=3.0, selection=4.0), seeds=4, images=9)
    assert found == Components(seeds=1.0, images=1.0, selection=4.0)


def test_with_so_many_seeds_as_are_said_it_is_settled():
    """Brute force over the number of seeds, by simulated samples without images."""
    found = Components(seeds=1.0, images=0.0, selection=0.0)  # of six seeds
    words = what_settles(found, 6, 1, 1.5)
    count = int(words.split()[0])
    assert words == f"{count} seeds"

    def reached(seeds):
        return power_with(scaled_errors(found, seeds / 6), seeds, 1, 1.5)

    assert reached(count) >= 0.8 > reached(count - 1)
    random, spread = np.random.default_rng(0), math.sqrt(6)
    samples = (Sample(1.5 + spread * random.standard_normal(count)) for _ in range(2000))
    found_often = np.mean([complete_interval(each).p_above(0) <= 0.05 for each in samples])
    assert found_often == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Components(0.1, 0.0, 0.0), "6 seeds"),
        (Components(0.1, 0.6, 0.0), r"\d+ seeds with 8,000 test images"),
        (Components(0.1, 0.0, 0.6), r"\d+ seeds, and pilots on many more seeds"),
        (Components(0.1, 0.6, 0.6), r"\d+ seeds with 8,000 test images, and pilots on many more"),
        (Components(30.0, 0.0, 0.0), f"a different test bed: {MOST_SEEDS} seeds would not"),
    ],
)
def test_seeds_images_or_pilots_are_named_by_what_is_the_obstacle(found, words):
    import re

    assert re.match(words, what_settles(found, 6, 4000, 1.2 if found.seeds < 1 else 1.0))


def test_the_components_of_a_sample_promise_its_power():
    """Crossed seeds and images: as often as `power_with` says, an effect is found."""
    random = np.random.default_rng(0)
    seeds, images, effect = 6, 40, 2.5

    def sample():
        values = (
            effect
            + 1.5 * random.standard_normal((seeds, 1))
            + 3.0 * random.standard_normal(images)
            + random.standard_normal((seeds, images))
        )
        return Sample(values.mean(1), values)

    samples = [sample() for _ in range(1500)]
    found = np.mean([complete_interval(each).p_above(0) <= 0.05 for each in samples])
    parts = [components(each) for each in samples]
    mean = Components(*(math.sqrt(np.mean([getattr(p, name) ** 2 for p in parts]))
                        for name in ("seeds", "images")), 0.0)  # fmt: skip
    assert found == pytest.approx(power_with(mean, seeds, images, effect), abs=0.04)
