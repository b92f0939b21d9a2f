"""A rule that is fixed before the runs: its words and its decision in one place, and the verdicts that it gives."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from deepjax.study.stats.verdict import (
    Interval,
    Outcome,
    Verdict,
    all_above,
    all_within,
    exact,
    mean_interval,
)


def format_interval(interval: Interval, sign: str = "") -> str:
    """An effect with its interval: '0.52 [0.49, 0.55]'; with sign "+": '+0.52 [+0.49, +0.55]'."""
    low, middle, high = (
        f"{value:{sign}.3g}" for value in (interval.low, interval.effect, interval.high)
    )
    return f"{middle} [{low}, {high}]"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is supported, refuted or inconclusive, in words and as a decision over intervals; the two must agree."""

    words: str
    decide: Callable[[Sequence[Interval]], Outcome]

    def verdict(
        self,
        claim: str,
        measure: str,
        values: Mapping[str, Sequence[float]],
        control: tuple[Outcome, ...] = (),
    ) -> Verdict:
        """The verdict on quantities that are measured seed by seed, each by its mean with Student's 95 % interval."""
        effects = {name: mean_interval(by_seed) for name, by_seed in values.items()}
        findings = tuple(f"{name}: {format_interval(effect)}" for name, effect in effects.items())
        kept = {name: list(by_seed) for name, by_seed in values.items()}
        return Verdict(
            claim,
            measure,
            self.words,
            self.decide(list(effects.values())),
            findings,
            effects,
            kept,
            control,
        )


def interval_rule(where: str, decide: Callable[[Sequence[Interval]], Outcome]) -> Rule:
    """One interval. where: what follows "the interval lies", such as "above 0"."""
    return Rule(
        f"Supported if the interval lies {where}; refuted if it lies all outside of that; else inconclusive.",
        decide,
    )


def above(what: str, bound: float) -> Rule:
    """Every interval of a quantity above a bound."""
    words = f"Supported if every 95 % interval of {what} lies above {bound:g}; refuted if one lies below it; else inconclusive."
    return Rule(words, functools.partial(all_above, bound=bound))


def within(what: str, low: float, high: float) -> Rule:
    """Every interval of a quantity between two bounds."""
    words = f"Supported if every 95 % interval of {what} lies between {low:g} and {high:g}; refuted if one lies outside of them; "
    return Rule(words + "else inconclusive.", functools.partial(all_within, low=low, high=high))


def exact_verdict(
    claim: str,
    measure: str,
    rule: str,
    holds: bool,
    *findings: str,
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """The verdict on integers that were worked out rather than measured, which need no seeds."""
    return Verdict(claim, measure, rule, exact(holds), findings, {}, {}, control)
