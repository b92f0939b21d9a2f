"""The power of a claim, and what would settle one that stayed open."""

import dataclasses
import math
from collections.abc import Sequence

import scipy.special

from deepjax.study.stats.intervals import LEVEL, Components, combined

ENOUGH = 0.8  # power that a confirmatory claim needs
MOST_SEEDS = 200
MOST_IMAGES = 1_000_000


def power(error: float, freedom: float, effect: float, level: float = LEVEL) -> float:
    """Chance that an effect of this size gets a two-sided p-value of at most the level.

    The noncentral t distribution; error: standard error of the estimated effect.
    """
    if not error:
        return 1.0 if effect else level
    quantile = float(scipy.special.stdtrit(freedom, 1 - level / 2))
    return 1.0 - float(scipy.special.nctdtr(freedom, effect / error, quantile))


def power_with(
    found: Components, seeds: int, images: int, effect: float, level: float = LEVEL
) -> float:
    """The power that errors by source give at an effect."""
    return power(*combined(found, seeds, images), effect, level)


def joint_power(
    parts: Sequence[Components],
    seeds: int,
    images: int,
    distances: Sequence[float],
    level: float = LEVEL,
) -> float:
    """At least the power that every part of a claim keeps all of these distances from its bounds.

    One less the chances that a part misses a bound (Bonferroni's inequality).
    """
    found = 1 - sum(
        1 - power_with(part, seeds, images, distance, level)
        for part in parts
        for distance in distances
    )
    return found if math.isnan(found) else max(0.0, found)


def scaled_errors(found: Components, seeds: float = 1.0, images: float = 1.0) -> Components:
    """The errors with so many times the seeds and the images."""
    return dataclasses.replace(
        found, seeds=found.seeds / math.sqrt(seeds), images=found.images / math.sqrt(images)
    )


def what_settles(
    found: Components, seeds: int, images: int, effect: float, level: float = LEVEL
) -> str:
    """What would give the effect a power of 80 %: seeds, test images, or pilot seeds."""

    def enough(with_seeds: int, with_images: int, pilots: bool) -> bool:
        parts = scaled_errors(found, with_seeds / seeds, with_images / max(1, images))
        parts = dataclasses.replace(parts, selection=0.0) if pilots else parts
        return power_with(parts, with_seeds, with_images, effect, level) >= ENOUGH

    for pilots, text in ((False, ""), (True, ", and pilots on many more seeds")):
        for count in range(seeds, MOST_SEEDS + 1):
            if enough(count, images, pilots):
                return f"{count} seeds{text}"
        more = images
        while found.images and (more := 2 * more) <= MOST_IMAGES:
            for count in range(seeds, MOST_SEEDS + 1):
                if enough(count, more, pilots):
                    return f"{count} seeds with {more:,} test images{text}"
    return f"a different test bed: {MOST_SEEDS} seeds would not suffice"
