"""Published results: verdicts after the correction of the headline claims, and in a second run."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.study.claim import FAMILY
from deepjax.study.stats.holm import holm_adjusted
from deepjax.study.stats.intervals import LEVEL

RESULT = "result.json"
SECOND = "second.json"
"""result.json of a second complete run, which differs in rounding alone."""
Record = Mapping[str, Any]  # a result.json


@dataclasses.dataclass(frozen=True)
class DeclaredStudy:
    """What is known of a study before it has results."""

    name: str
    title: str
    lecture: str
    claims: Sequence[str]
    headline: Sequence[str] = ()
    """Those of the claims that are the lecture's headline claims."""


@dataclasses.dataclass(frozen=True)
class PublishedVerdict:
    """A verdict of a result.json with its outcome after the correction."""

    values: Record
    """As `Verdict.as_dict` gives them."""
    outcome: str
    adjusted: float | None = None
    """p-value after Holm's correction, for a measured headline claim."""
    second: str = ""
    """Outcome in the second run; empty without one."""

    @property
    def claim(self) -> str:
        """Its text."""
        return self.values["claim"]

    @property
    def is_control(self) -> bool:
        """Whether its outcome is known beforehand."""
        return bool(self.values["control"])

    @property
    def is_failed_control(self) -> bool:
        """Whether it is a control with an unexpected outcome."""
        return self.is_control and self.values["outcome"] not in self.values["control"]

    @property
    def is_unstable(self) -> bool:
        """Whether the second run has another outcome."""
        return self.second not in ("", self.outcome)

    @property
    def is_changed(self) -> bool:
        """Whether the correction changed the outcome."""
        return self.outcome != self.values["outcome"]


@dataclasses.dataclass(frozen=True)
class PublishedStudy:
    """A study's result.json in one preset."""

    name: str
    record: Record
    verdicts: Sequence[PublishedVerdict]
    has_second: bool = False
    promised: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By claim: the power at its smallest effect of interest that the pilots promise."""

    @property
    def folder(self) -> str:
        """Its folder below docs/results."""
        return f"{self.name}-{self.record['preset']}"

    @property
    def claims(self) -> list[PublishedVerdict]:
        """The verdicts that are not controls."""
        return [each for each in self.verdicts if not each.is_control]

    @property
    def others(self) -> list[PublishedVerdict]:
        """The claims that are not headline claims, where there are some that are."""
        return [each for each in self.claims if each not in self.shown]

    @property
    def controls(self) -> list[PublishedVerdict]:
        """The controls."""
        return [each for each in self.verdicts if each.is_control]

    @property
    def shown(self) -> list[PublishedVerdict]:
        """The headline claims, which its section shows; all claims where there are none."""
        return [each for each in self.claims if each.values["headline"]] or self.claims

    def verdict(self, beginning: str) -> PublishedVerdict | None:
        """The verdict of a claim, by the beginning of its text."""
        found = (each for each in self.verdicts if beginning and each.claim.startswith(beginning))
        return next(found, None)


def read_studies(results: Path, names: Sequence[str], preset: str) -> dict[str, PublishedStudy]:
    """The published studies of a preset by name, in the given order.

    Their measured headline claims are one family of `FAMILY` claims; those of a study that is not
    published count as p = 1. A claim that does not stand after the correction is inconclusive.
    """
    first = _records(results, names, preset, RESULT)
    second = {
        name: record
        for name, record in _records(results, list(first), preset, SECOND).items()
        if is_repetition(record, first[name])
    }
    corrected = _corrected(first)
    repeated = _corrected(first | second)  # what was run once counts as in the first run
    return {
        name: PublishedStudy(
            name,
            record,
            [
                PublishedVerdict(
                    verdict,
                    *corrected[name, verdict["claim"]],
                    repeated.get((name, verdict["claim"]), ("",))[0] if name in second else "",
                )
                for verdict in record["verdicts"]
            ],
            name in second,
            _promised(results / "pilots" / f"{name}-{preset}.json"),
        )
        for name, record in first.items()
    }


def _promised(path: Path) -> dict[str, float]:
    """The power by claim in the published record of pilots; empty where there is none."""
    if not path.exists():
        return {}
    return {claim: found["power"] for claim, found in json.loads(path.read_text())["power"].items()}


def is_repetition(record: Record, other: Record) -> bool:
    """Whether two results are of the same study, preset, seeds and protocol."""
    return all(record[key] == other[key] for key in ("study", "preset", "seeds", "protocol"))


def _records(results: Path, names: Sequence[str], preset: str, file: str) -> dict[str, Record]:
    paths = {name: results / f"{name}-{preset}" / file for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def _corrected(
    records: Mapping[str, Record],
) -> dict[tuple[str, str], tuple[str, float | None]]:
    """By study and claim: the outcome after the correction, and the adjusted p-value."""
    verdicts = {
        (name, verdict["claim"]): verdict
        for name, record in records.items()
        for verdict in record["verdicts"]
    }
    family = {
        f"{name}\n{claim}": verdict["p"]
        for (name, claim), verdict in verdicts.items()
        if verdict["headline"] and not verdict["exact"]
    }
    adjusted = holm_adjusted(family, FAMILY)
    found = {}
    for (name, claim), verdict in verdicts.items():
        p = adjusted.get(f"{name}\n{claim}")
        open_now = p is not None and p > LEVEL and verdict["outcome"] != "not trained"
        found[name, claim] = ("inconclusive" if open_now else verdict["outcome"], p)
    return found
