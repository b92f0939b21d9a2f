"""Verdicts on numbers that were measured seed by seed: their mean, and the difference of two of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deepjax.study.stats.rules import Rule, format_interval
from deepjax.study.stats.verdict import Interval, Outcome, Verdict, mean_interval, paired_interval
from deepjax.study.study import StudyResults

Decide = Callable[[Sequence[Interval]], Outcome]
"""From the interval of the effect, as a list of one, to the outcome."""
Values = Mapping[str, Sequence[float]]
"""By name, seed by seed."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim on a number that was measured of one network, or on the difference of two networks."""

    text: str
    kind: str
    """What is measured: evidence.values(kind, name) is the number by seed, or several whose mean it is."""
    names: tuple[str, ...]
    """Of which network; or of which less that of which other."""
    rule: str
    """By which of the study's rules."""
    control: tuple[Outcome, ...] = ()


def judge_claims(
    claims: Sequence[Claim],
    rules: Mapping[str, Rule],
    measures: Mapping[str, tuple[str, str]],
    evidence: StudyResults,
) -> list[Verdict]:
    """Each claim by its rule. measures: by kind, what was measured and its unit. Differences are paired by seed."""
    verdicts = []
    for claim in claims:
        measure, unit = measures[claim.kind]
        values = {
            name: [float(np.mean(each)) for each in evidence.values(claim.kind, name)]
            for name in claim.names
        }
        measured = (
            f"{measure} Student's 95 % interval over seeds{', paired' if len(values) == 2 else ''}."
        )
        rule = rules[claim.rule]
        make = difference if len(values) == 2 else average
        verdicts.append(
            make(claim.text, measured, rule.words, rule.decide, values, unit, claim.control)
        )
    return verdicts


def average(
    claim: str,
    measure: str,
    rule: str,
    decide: Decide,
    values: Values,
    unit: str = "",
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """The mean over seeds of one number with Student's interval. values: by its name."""
    ((name, each),) = values.items()
    mean = mean_interval(each)
    finding = f"{name}: {format_interval(mean)}{unit}"
    return Verdict(
        claim, measure, rule, decide([mean]), (finding,), {name: mean}, {name: list(each)}, control
    )


def difference(
    claim: str,
    measure: str,
    rule: str,
    decide: Decide,
    values: Values,
    unit: str = "",
    control: tuple[Outcome, ...] = (),
) -> Verdict:
    """The first of two less the second, paired by seed, with Student's interval. values: by name, seed by seed."""
    (first, one), (second, other) = values.items()
    less = paired_interval(one, other)
    finding = f"{first} {np.mean(one):.3g}{unit}, {second} {np.mean(other):.3g}{unit}; difference {format_interval(less, '+')}"
    kept = {name: list(each) for name, each in values.items()}
    return Verdict(
        claim, measure, rule, decide([less]), (finding,), {"difference": less}, kept, control
    )
