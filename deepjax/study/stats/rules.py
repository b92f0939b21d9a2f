"""Decision rules that are fixed before the runs: the words and the decision, in one place."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from deepjax.study.stats.intervals import Interval, format_interval, mean_interval
from deepjax.study.stats.verdict import Outcome, Verdict

Decide = Callable[[Sequence[Interval]], Outcome]
"""From intervals to an outcome."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """When a claim is supported, refuted or inconclusive: in words, and as a decision."""

    words: str
    decide: Decide

    def verdict(
        self,
        claim: str,
        measure: str,
        values: Mapping[str, Sequence[float]],
        control: tuple[Outcome, ...] = (),
    ) -> Verdict:
        """The verdict on quantities by seed, each by its mean with Student's 95 % interval."""
        effects = {name: mean_interval(by_seed) for name, by_seed in values.items()}
        findings = tuple(f"{name}: {format_interval(effect)}" for name, effect in effects.items())
        by_name = {name: list(by_seed) for name, by_seed in values.items()}
        outcome = self.decide(list(effects.values()))
        return Verdict(claim, measure, self.words, outcome, findings, effects, by_name, control)


def interval_rule(where: str, decide: Decide) -> Rule:
    """A rule on one interval. where: what follows "the interval lies", such as "above 0"."""
    return Rule(
        f"Supported if the interval lies {where}; refuted if it lies all outside of that; "
        "else inconclusive.",
        decide,
    )


def above(what: str, bound: float) -> Rule:
    """Supported if every interval of a quantity is above a bound."""
    words = (
        f"Supported if every 95 % interval of {what} lies above {bound:g}; "
        "refuted if one lies below it; else inconclusive."
    )
    return Rule(words, functools.partial(all_above, bound=bound))


def within(what: str, low: float, high: float) -> Rule:
    """Supported if every interval of a quantity is between two bounds."""
    words = (
        f"Supported if every 95 % interval of {what} lies between {low:g} and {high:g}; "
        "refuted if one lies outside of them; else inconclusive."
    )
    return Rule(words, functools.partial(all_within, low=low, high=high))


def all_above(intervals: Sequence[Interval], bound: float) -> Outcome:
    """Supported if every interval is above the bound, refuted if any is below it."""
    if all(interval.low > bound for interval in intervals):
        return "supported"
    return "refuted" if any(interval.high < bound for interval in intervals) else "inconclusive"


def all_below(intervals: Sequence[Interval], bound: float) -> Outcome:
    """Supported if every interval is below the bound, refuted if any is above it."""
    if all(interval.high < bound for interval in intervals):
        return "supported"
    return "refuted" if any(interval.low > bound for interval in intervals) else "inconclusive"


def all_within(intervals: Sequence[Interval], low: float, high: float) -> Outcome:
    """Supported if every interval is between the bounds, refuted if any is outside of them."""
    if all(low < interval.low and interval.high < high for interval in intervals):
        return "supported"
    outside = any(interval.high < low or interval.low > high for interval in intervals)
    return "refuted" if outside else "inconclusive"


def exact_outcome(holds: bool) -> Outcome:
    """Of exact integers, which have no interval: supported or refuted."""
    return "supported" if holds else "refuted"


def exact_verdict(
    claim: str,
    measure: str,
    rule: str,
    holds: bool,
    *findings: str,
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """The verdict on exact integers, which need no seeds."""
    return Verdict(claim, measure, rule, exact_outcome(holds), findings, {}, {}, control)
