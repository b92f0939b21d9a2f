"""Decision rules, fixed before the runs: a region in which the effect has to lie."""

import dataclasses
import math
from collections.abc import Sequence

from deepjax.study.stats.intervals import LEVEL, Interval
from deepjax.study.stats.verdict import Outcome, with_unit


@dataclasses.dataclass(frozen=True)
class Decision:
    """The outcome of a rule, and the p-value that a correction for many claims compares."""

    outcome: Outcome
    p: float


@dataclasses.dataclass(frozen=True)
class Rule:
    """Supported if every interval lies inside (low, high); refuted if one lies outside."""

    low: float = -math.inf
    high: float = math.inf

    def words(self, unit: str = "", level: float = LEVEL, parts: int = 1) -> str:
        """The rule in words; unit: text after a number, such as " points"."""
        interval = f"the {100 * (1 - level):g} % interval"
        lies = f"every one of {parts} intervals lies" if parts > 1 else f"{interval} lies"
        other = "one lies all" if parts > 1 else "it lies all"
        return (
            f"Supported if {lies} {self._region(unit)}; refuted if {other} outside of that; else "
            "inconclusive."
        )

    def decide(self, intervals: Sequence[Interval], level: float = LEVEL) -> Decision:
        """Decide on one interval, or on several, all of which must lie inside the region.

        The p-value of support is the greatest of the parts' (an intersection-union test); that of
        refutation is the least, multiplied by the number of parts (Bonferroni).
        """
        support = max(max(self._p_inside(each)) for each in intervals)
        refute = min(1.0, len(intervals) * min(self._p_outside(each) for each in intervals))
        if support <= level:
            return Decision("supported", support)
        if refute <= level:
            return Decision("refuted", refute)
        return Decision("inconclusive", min(support, refute))

    def distances(self, interest: float) -> list[float]:
        """The distances from the bounds of an effect that is `interest` inside of one of them."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return [interest, self.high - self.low - interest]
        return [interest]

    def _p_inside(self, interval: Interval) -> list[float]:
        found = [interval.p_above(self.low)] if math.isfinite(self.low) else []
        return found + ([interval.p_below(self.high)] if math.isfinite(self.high) else [])

    def _p_outside(self, interval: Interval) -> float:
        below = interval.p_below(self.low) if math.isfinite(self.low) else 1.0
        above = interval.p_above(self.high) if math.isfinite(self.high) else 1.0
        return min(below, above)

    def _region(self, unit: str) -> str:
        if not math.isfinite(self.high):
            return f"above {with_unit(self.low, unit)}"
        if not math.isfinite(self.low):
            return f"below {with_unit(self.high, unit)}"
        return f"between {self.low:g} and {self.high:g}{unit}"


def above(bound: float) -> Rule:
    """The effect is greater than the bound."""
    return Rule(low=bound)


def below(bound: float) -> Rule:
    """The effect is less than the bound."""
    return Rule(high=bound)


def within(low: float, high: float) -> Rule:
    """The effect is between two bounds."""
    return Rule(low, high)
