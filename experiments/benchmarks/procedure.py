"""False positives and power of the procedure of the studies as a whole, by simulation.

python experiments/benchmarks/procedure.py --out docs/results/procedure.json

A simulated study compares two arms. The error of each is a parabola of log2 of the learning rate;
its optimum lies anywhere between the rates of the grid, and its height is such that both arms have
the same error at their own best rate of the grid: there is nothing to find. The study is done as
`deepjax.study` does it: pilots of six seeds on a grid of factors of 2, extended until the best rate
is interior; the rate of the lowest mean training error, or error on images held out; the error of
that choice; judged runs with fresh seeds, both arms under the same seeds; the complete interval of
the difference, and the rule above(0), or below(2) where the true difference is 2 points.

An image is misclassified if its difficulty, most of which both arms share, exceeds a threshold,
which the error of the run determines. 400 test images stand for 4,000: the deviation of each from
the error of its run is divided by the root of 10, so that means have the variance of means over
4,000.

The power is that of differences that are added to such studies. As many studies in a row as the
lecture has measured headline claims are a family, corrected by Holm.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.special
from harness import format_command, write_result

from deepjax import command_line
from deepjax.study.arms.result import ArmResult
from deepjax.study.claim import FAMILY
from deepjax.study.preset import Preset
from deepjax.study.quantity import Split, error
from deepjax.study.results import StudyResults
from deepjax.study.stats.holm import first_level, holm_adjusted
from deepjax.study.stats.intervals import LEVEL, PILOT_SEEDS, Interval, complete_interval
from deepjax.study.stats.rules import above, below
from deepjax.study.stats.selection import best_rate, is_interior, selection_error

Shape = Literal["normal", "lognormal", "heavy-tailed"]
IMAGES, STANDS_FOR = 400, 4000
ERROR = 12.0  # of both arms at their best rates, in per cent
DIFFICULTY = (0.6, 0.15, 0.25)  # variance of an image's difficulty: of both arms, of one, of a run
OWN_TEST = 0.5  # part of the variance over seeds that the test error does not share with training
HELD_OUT = 0.3  # points that 2,000 images held out add to the noise of a run's error
EFFECTS = (0.5, 1.0, 2.0, 3.0, 5.0)
PRESET = Preset("fashion_mnist_small", 6)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of study. Errors are in points, learning rates in octaves (factors of 2)."""

    noise: float = 0.5
    """Standard deviation of an error over seeds."""
    ratio: float = 1.0
    """That of the second arm over that of the first."""
    shape: Shape = "normal"
    """Distribution over seeds. lognormal: of sigma 0.7; heavy-tailed: Student's t of 3 degrees."""
    correlation: float = 0.3
    """Of the arms' errors under one seed."""
    rate_correlation: float = 0.3
    """Of one arm's errors at different rates under one seed."""
    curvature: float = 0.5
    """Points that the error increases one octave from its optimum."""
    steepness: float = 1.0
    """Factor of the curvature above the optimum."""
    growth: float = 1.0
    """Factor of the noise for each octave above the optimum."""
    divergence: float = 0.0
    """Chance of a run to diverge at a rate that is more than one octave above its optimum."""
    test_optimum: float = 0.0
    """Octaves by which the optimum of the test error is above that of the training error."""
    split: Split = "test"
    """Images on which the arms are compared."""
    select: Split = "train"
    """Images on which rates are selected; "test" are training images that pilots hold out."""
    seeds: int = 6
    difference: float = 0.0
    """True difference of the arms, which is also the bound of the rule."""


KINDS: Mapping[str, Kind] = {
    "medium noise": Kind(),
    "small noise": Kind(noise=0.1),
    "large noise": Kind(noise=1.5),
    "lognormal noise": Kind(shape="lognormal"),
    "heavy-tailed noise": Kind(shape="heavy-tailed"),
    "uncorrelated seeds": Kind(correlation=0.0, rate_correlation=0.0),
    "strongly correlated arms": Kind(correlation=0.9),
    "one arm four times noisier": Kind(ratio=4.0),
    "another optimum on test images": Kind(test_optimum=0.7),
    "optimum two octaves higher on test images": Kind(test_optimum=2.0),
    "compared on training images": Kind(split="train"),
    "selected on images held out": Kind(select="test"),
    "selected on images held out, large noise": Kind(select="test", noise=1.5, seeds=12),
    "steep and noisy above the optimum": Kind(steepness=4.0, growth=3.0),
    "half of the runs diverge above the optimum": Kind(curvature=1.0, divergence=0.5),
    "sharp optimum": Kind(noise=0.7, curvature=50.0),
    "12 seeds": Kind(seeds=12),
    "12 seeds, sharp optimum": Kind(noise=0.7, curvature=50.0, seeds=12),
    "12 seeds, large noise, another optimum": Kind(noise=1.5, test_optimum=0.7, seeds=12),
    "2 points worse, not worse by 2": Kind(difference=2.0),
}
# Student's t does not have the level for a mean of six skewed values.
LIMITS = {
    "one arm four times noisier, all lognormal, sharp optimum": Kind(
        noise=1.5, ratio=4.0, shape="lognormal", curvature=50.0
    ),
}
# Standard deviations over seeds and correlations between arms, as pilots show them.
POWER_KINDS = {
    f"{noise:g} points, correlation {correlation:g}, {seeds} seeds": Kind(
        noise=noise, correlation=correlation, rate_correlation=correlation, seeds=seeds
    )
    for seeds in (6, 12)
    for noise in (0.3, 0.7, 1.5)
    for correlation in (0.0, 0.5)
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How many studies are simulated."""

    studies: int = 5000
    """Of each kind without an effect; an incomplete last family is left out."""
    power_studies: int = 1000
    """Of each kind whose power is computed."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


@dataclasses.dataclass(frozen=True)
class Simulated:
    """Simulated studies of one kind."""

    kind: Kind
    intervals: Sequence[Interval]
    selected: Sequence[bool]
    """Whether both arms have the best rate, by study."""

    def p_values(self, effect: float = 0.0) -> list[float]:
        """The p-value of each study's decision, with a difference of `effect` points added."""
        rule = below(self.kind.difference) if self.kind.difference else above(0)
        return [
            rule.decide([dataclasses.replace(each, effect=each.effect + effect)]).p
            for each in self.intervals
        ]


def simulate(kind: Kind, studies: int, seed: int = 0) -> Simulated:
    """Simulate studies of one kind."""
    random = np.random.default_rng(seed)
    intervals, selected = [], []
    for _ in range(studies):
        interval, best = simulate_study(kind, random)
        intervals.append(interval)
        selected.append(best)
    return Simulated(kind, intervals, selected)


def simulate_study(kind: Kind, random: np.random.Generator) -> tuple[Interval, bool]:
    """The interval of one study's difference, and whether both arms have their best rate."""
    optima = random.uniform(-1.5, 1.5, 2)  # octaves from the middle of the grid
    noises = kind.noise * np.array([1.0, kind.ratio])
    pilots = [run_pilots(kind, *each, random) for each in zip(optima, noises, strict=True)]
    of_seeds = correlated(kind, kind.correlation, (2, kind.seeds), random)
    arms, common = {}, random.standard_normal(IMAGES)
    for i, (name, (octave, selection)) in enumerate(zip("ab", pilots, strict=True)):
        at_rate = true_error(kind, optima[i], octave, kind.split)
        noise = noises[i] * kind.growth ** max(0.0, octave - optima[i])
        errors = at_rate + kind.difference * (name == "b") + noise * of_seeds[i]
        wrong = misclassified_images(np.clip(errors, 0.1, 90) / 100, common, random)
        arms[name] = ArmResult(
            2.0**octave, [], {kind.split: wrong}, PRESET.dataset, name, {kind.split: selection}
        )
    results = StudyResults(PRESET, tuple(range(kind.seeds)), arms)
    sample = (error("b") - error("a")).sample(results, kind.split)
    best = all(
        octave == best_octave(kind, optimum)
        for (octave, _), optimum in zip(pilots, optima, strict=True)
    )
    return complete_interval(sample), best


def run_pilots(
    kind: Kind, optimum: float, noise: float, random: np.random.Generator
) -> tuple[int, float]:
    """The selected rate of an arm, in octaves, and the error of its choice, a fraction."""
    errors: dict[Split, dict[float, list[float]]] = {"train": {}, "test": {}}
    selected_by = errors[kind.select]
    common = standardised(kind.shape, (2, PILOT_SEEDS), random)
    octaves = [-1, 0, 1]
    while True:
        for octave in octaves:
            own = standardised(kind.shape, (2, PILOT_SEEDS), random)
            parts = mixed(common, own, kind.rate_correlation)
            parts[1] = mixed(parts[0], parts[1], 1 - OWN_TEST)
            diverged = random.random(PILOT_SEEDS) < kind.divergence * (octave > optimum + 1)
            noise_at = noise * kind.growth ** max(0.0, octave - optimum)
            for (split, of_split), part in zip(errors.items(), parts, strict=True):
                found = true_error(kind, optimum, octave, split) + noise_at * part
                if split == kind.select == "test":
                    found = found + HELD_OUT * random.standard_normal(PILOT_SEEDS)
                found = np.clip(np.where(diverged, 90.0, found), 0.1, 90.0)
                of_split[2.0**octave] = (found / 100).tolist()
        best = best_rate(selected_by)
        rates = list(selected_by)
        if is_interior(rates, best):
            break
        octaves = [round(math.log2(max(rates) * 2 if best == max(rates) else min(rates) / 2))]
    return round(math.log2(best)), selection_error(selected_by, errors[kind.split])


def true_error(kind: Kind, optimum: float, octave: float, split: Split) -> float:
    """The error of an arm at a rate, in per cent; `ERROR` at the best rate of the grid."""
    center = optimum + kind.test_optimum * (split == "test")

    def curve(at: float) -> float:
        steepness = kind.steepness if at > center else 1.0
        return kind.curvature * steepness * (at - center) ** 2

    return ERROR + curve(octave) - curve(best_octave(kind, optimum))


def best_octave(kind: Kind, optimum: float) -> int:
    """The rate of the grid with the lowest training error."""
    low = math.floor(optimum)
    return min(
        (low, low + 1),
        key=lambda at: (kind.steepness if at > optimum else 1.0) * (at - optimum) ** 2,
    )


def correlated(
    kind: Kind, correlation: float, shape: tuple[int, int], random: np.random.Generator
) -> np.ndarray:
    """Standardised deviations, (arms, seeds), with a part that the arms have in common."""
    common = standardised(kind.shape, (1, shape[1]), random)
    return mixed(common, standardised(kind.shape, shape, random), correlation)


def mixed(common: np.ndarray, own: np.ndarray, correlation: float) -> np.ndarray:
    """The sum of a common and an own part, of the same variance."""
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


def standardised(shape: Shape, size: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Deviations with mean 0 and standard deviation 1."""
    if shape == "lognormal":
        variance = 0.7**2
        values = np.exp(0.7 * random.standard_normal(size))
        return (values - math.exp(variance / 2)) / math.sqrt(
            math.exp(variance) * (math.exp(variance) - 1)
        )
    if shape == "heavy-tailed":
        return random.standard_t(3, size) / math.sqrt(3)
    return random.standard_normal(size)


def misclassified_images(
    errors: np.ndarray, common: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Which images runs with these errors misclassify, (seeds, images), with scaled deviations.

    errors: fractions by seed; common: the difficulty of each image for all arms.
    """
    for_all, for_arm, for_run = np.sqrt(DIFFICULTY)
    difficulty = for_all * common + for_arm * random.standard_normal(IMAGES)
    difficulty = difficulty + for_run * random.standard_normal((len(errors), IMAGES))
    expected = errors[:, None]
    wrong = difficulty > -scipy.special.ndtri(expected)
    return expected + (wrong - expected) * math.sqrt(IMAGES / STANDS_FOR)


def rate(p_values: Sequence[float], level: float) -> dict[str, float]:
    """The fraction of p-values up to a level, with its standard error."""
    found = float(np.mean(np.array(p_values) <= level))
    return {"rate": found, "error": math.sqrt(found * (1 - found) / len(p_values))}


def family_rate(p_values: Sequence[float]) -> dict[str, float]:
    """The fraction of families with a p-value that stands after Holm's correction."""
    families = [p_values[i : i + FAMILY] for i in range(0, len(p_values) - FAMILY + 1, FAMILY)]
    least = [
        min(holm_adjusted({str(i): p for i, p in enumerate(each)}).values()) for each in families
    ]
    return rate(least, LEVEL)


def main() -> None:
    """Simulate, print two tables, write."""
    options = command_line.parse(Options)
    result = compute(options)
    print(tables(result))
    write_result(result, options.out)


def compute(options: Options) -> dict[str, Any]:
    """False positives by kind, and power."""
    nulls = {name: simulate(kind, options.studies) for name, kind in KINDS.items()}
    mixed = np.transpose([found.p_values() for found in nulls.values()]).ravel().tolist()
    limits = {name: simulate(kind, options.studies) for name, kind in LIMITS.items()}
    power = {
        name: power_of(simulate(kind, options.power_studies)) for name, kind in POWER_KINDS.items()
    }
    given = vars(options) | {"out": options.out and str(options.out)}
    return {
        "command": format_command("procedure.py", given, Options()).strip("`"),
        "studies": options.studies,
        "false_positives": {name: false_positives(found) for name, found in nulls.items()},
        "families_of_all_kinds": family_rate(mixed[: len(mixed) // FAMILY * FAMILY]),
        "limits": {name: false_positives(found) for name, found in limits.items()},
        "power_studies": options.power_studies,
        "power": power,
    }


def false_positives(found: Simulated) -> dict[str, Any]:
    """How often there is a verdict, alone and in families; how often both rates are the best."""
    p = found.p_values()
    return {
        "kind": dataclasses.asdict(found.kind),
        "alone": rate(p, LEVEL),
        "family": family_rate(p),
        "best_rates": float(np.mean(found.selected)),
    }


def power_of(found: Simulated) -> dict[str, Any]:
    """By effect: how often it is found alone, and at the first level of Holm's correction."""
    by_effect = {f"{effect:g}": found.p_values(effect) for effect in EFFECTS}
    return {
        effect: {"alone": rate(p, LEVEL), "headline": rate(p, first_level(FAMILY))}
        for effect, p in by_effect.items()
    }


def tables(result: Mapping[str, Any]) -> str:
    """In Markdown: false positives, and power alone / as a headline claim."""
    lines = [
        f"`{result['command']}`",
        "",
        f"| nothing to find | alone | family of {FAMILY} |",
        "|---|---|---|",
    ]
    nulls = result["false_positives"] | {
        "families of all kinds": {"family": result["families_of_all_kinds"]}
    }
    for name, row in (nulls | result["limits"]).items():
        cells = (_percent(row.get(which)) for which in ("alone", "family"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    head = " | ".join(f"{effect:g}" for effect in EFFECTS)
    lines += ["", f"| power at points | {head} |", "|---|" + "---|" * len(EFFECTS)]
    for name, row in result["power"].items():
        cells = (
            f"{100 * each['alone']['rate']:.0f} / {100 * each['headline']['rate']:.0f} %"
            for each in row.values()
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(found: Mapping[str, float] | None) -> str:
    return f"{100 * found['rate']:.2f} ± {100 * found['error']:.2f} %" if found else ""


if __name__ == "__main__":
    command_line.run_command(main)
