"""A verdict: a claim, the outcome of its rule, and the numbers behind it."""

import dataclasses
from typing import Any, Literal

from deepjax.study.stats.intervals import Interval

Outcome = Literal["supported", "refuted", "inconclusive"]
NOT_SUPPORTED: tuple[Outcome, ...] = ("refuted", "inconclusive")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judged claim, with everything that a reader needs to check the outcome by hand."""

    claim: str
    measure: str
    rule: str
    outcome: Outcome
    findings: tuple[str, ...]
    effects: dict[str, Interval]
    values: dict[str, list[float]]
    control: tuple[Outcome, ...] = ()
    """Expected outcomes, if this is a negative control; empty for a claim."""

    @property
    def is_as_expected(self) -> bool:
        """Whether a control has an expected outcome; True for a claim."""
        return not self.control or self.outcome in self.control

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for result.json."""
        return dataclasses.asdict(self)
