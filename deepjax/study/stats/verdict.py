"""A verdict: a claim, the outcome of its rule, and the numbers behind it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Outcome = Literal["supported", "refuted", "inconclusive", "not trained"]
Bounds = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Effect:
    """One measured quantity: its mean, intervals, and the values by seed."""

    name: str
    unit: str
    """Text after a number."""
    mean: float
    seeds: Bounds
    """Interval over seeds."""
    complete: Bounds
    """Interval over seeds, images and selected rates; the rule decides on it."""
    values: tuple[float, ...]
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Standard errors by source: seeds, images, selection."""

    def text(self) -> str:
        """'+1.2 [+0.8, +1.6] points'; where images count, the interval over seeds too."""
        low, high = self.complete
        found = f"{self.mean:{_FORM}} [{low:{_FORM}}, {high:{_FORM}}]{self.unit}"
        if self.seeds != self.complete:
            found += f" (seeds alone [{self.seeds[0]:{_FORM}}, {self.seeds[1]:{_FORM}}])"
        return f"{self.name}: {found}"


_FORM = "#.3g"


def with_unit(value: float, unit: str, form: str = "g") -> str:
    """A number with its unit, which is in the singular after 1.

    >>> with_unit(1.0, " points"), with_unit(2.0, " points"), with_unit(1.0, "")
    ('1 point', '2 points', '1')
    """
    number = f"{value:{form}}"
    return number + (unit.removesuffix("s") if number == "1" else unit)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judged claim, with everything that a reader needs to check the outcome by hand."""

    claim: str
    rule: str
    outcome: Outcome
    effects: Sequence[Effect] = ()
    findings: Sequence[str] = ()
    """Sentences beside the effects: exact numbers, errors of the arms, baselines."""
    p: float | None = None
    """Two-sided p-value; None for an exact claim."""
    control: tuple[Outcome, ...] = ()
    """Expected outcomes, if this is a control; empty for a claim."""
    headline: bool = False
    exact: bool = False
    exploratory: str = ""
    """Why the claim is exploratory; empty if it is confirmatory."""
    settles: str = ""
    """What would settle an inconclusive claim."""
    power: str = ""
    """Smallest effect of interest, and the power at it."""

    @property
    def is_as_expected(self) -> bool:
        """Whether a control has an expected outcome; True for a claim."""
        return not self.control or self.outcome in self.control

    def lines(self) -> list[str]:
        """The findings, one a line."""
        return [*(effect.text() for effect in self.effects), *self.findings]

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for result.json."""
        return dataclasses.asdict(self)
