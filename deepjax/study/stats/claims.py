"""Verdicts on what several studies ask of arms' errors and of values measured by seed."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepjax.study.arm_result import ArmResult
from deepjax.study.stats.intervals import (
    Interval,
    difference_interval,
    format_interval,
    format_ratio,
    mean_interval,
    paired_interval,
    percent,
    percent_points,
)
from deepjax.study.stats.rules import Rule, all_above, all_below
from deepjax.study.stats.verdict import Outcome, Verdict

Named = tuple[str, ArmResult]
Control = tuple[Outcome, ...]
Values = Mapping[str, Sequence[float]]
"""By name, seed by seed."""
Measured = Sequence[Mapping[str, Any]]
"""By seed: what the study's `measure` returned."""
SETS = {"train": "training", "test": "test"}


# Final errors of arms.


def compare_errors(
    claim: str,
    first: Named,
    second: Named,
    rule: Rule,
    sets: Sequence[str] = ("train", "test"),
    control: Control = (),
    paired: bool = False,
) -> Verdict:
    """Final errors of the first arm minus those of the second.

    sets: training images, test images or both; the rule gets an interval for each. Errors are
    fractions. `paired`: difference paired by seed.
    """
    (a_name, a), (b_name, b) = first, second
    effects, values, findings = {}, {}, []
    for name in sets:
        one, other = a.final(f"{name}_error"), b.final(f"{name}_error")
        effects[name] = (paired_interval if paired else difference_interval)(one, other)
        values |= {f"{a_name} {name}": one, f"{b_name} {name}": other}
        means = f"{a_name} {percent(one)}, {b_name} {percent(other)}"
        findings.append(f"{SETS[name]} error: {means}, difference {percent_points(effects[name])}")
    how = "paired by seed, Student's 95 % interval" if paired else "Welch's 95 % interval"
    measure = (
        "Final error in evaluation mode over every image of the set, mean over seeds; "
        f"difference with {how}."
    )
    outcome = rule.decide(list(effects.values()))
    return Verdict(claim, measure, rule.words, outcome, tuple(findings), effects, values, control)


def lower_error(claim: str, one: Named, other: Named, control: Control = ()) -> Verdict:
    """Does arm `one` have a lower test error than arm `other`?"""
    rule = Rule(
        "Supported if the interval of the difference lies above 0; refuted if it lies below; "
        "else inconclusive.",
        functools.partial(all_above, bound=0.0),
    )
    return compare_errors(claim, other, one, rule, ("test",), control)


def no_lower_error(
    claim: str, one: Named, other: Named, margin: float, control: Control = ()
) -> Verdict:
    """Is arm `one`'s test error not lower than arm `other`'s by a margin, a fraction, or more?"""
    rule = Rule(
        f"Supported if the interval lies below {100 * margin:g} points; "
        "refuted if it lies above that; else inconclusive.",
        functools.partial(all_below, bound=margin),
    )
    return compare_errors(claim, other, one, rule, ("test",), control)


def ablation_verdict(
    claim: str, complete: ArmResult, without: Mapping[str, ArmResult], tolerance: float
) -> Verdict:
    """Does the test error rise without each part?

    tolerance: a rise, as a fraction, below which a part is not needed.
    """
    rule = (
        "Supported if every interval lies above 0; "
        f"else refuted if one lies below {100 * tolerance:g} points; else inconclusive."
    )
    measure = (
        "Final test error of networks trained without the part, less that of the whole, "
        "means over seeds; Welch's 95 % interval."
    )
    errors = {part: arm.final("test_error") for part, arm in without.items()}
    base = complete.final("test_error")
    effects = {part: difference_interval(each, base) for part, each in errors.items()}
    findings = tuple(
        f"without {part} {percent(errors[part])}, whole {percent(base)}: {percent_points(rise)}"
        for part, rise in effects.items()
    )
    values = {"whole": base} | {f"without {part}": each for part, each in errors.items()}
    outcome = ablation_outcome(list(effects.values()), tolerance)
    return Verdict(claim, measure, rule, outcome, findings, effects, values)


def ablation_outcome(rises: Sequence[Interval], tolerance: float) -> Outcome:
    """The decision of `ablation_verdict`."""
    if all(rise.low > 0 for rise in rises):
        return "supported"
    return "refuted" if any(rise.high < tolerance for rise in rises) else "inconclusive"


def compare_gains(
    claim: str,
    pairs: Mapping[str, tuple[ArmResult, ArmResult]],
    of: str,
    rule: Rule,
    control: Control = (),
) -> Verdict:
    """Interaction: the effect of a change at one setting minus that at another, paired by seed.

    pairs: (with the change, without it) by setting, two of them; `of`: "train_error" or
    "test_error".
    """
    changes = {
        at: np.subtract(changed.final(of), base.final(of)).tolist()
        for at, (changed, base) in pairs.items()
    }
    interval = paired_interval(*changes.values())
    names = list(pairs)
    each = [f"{at}: {percent_points(mean_interval(change))}" for at, change in changes.items()]
    which = SETS[of.removesuffix("_error")]
    return Verdict(
        claim,
        f"Change of the final {which} error, {names[0]} less {names[1]}; "
        "paired by seed, Student's 95 % interval.",
        rule.words,
        rule.decide([interval]),
        (*each, f"difference {percent_points(interval)}"),
        {f"change, {names[0]} less {names[1]}": interval},
        changes,
        control,
    )


def compare_epochs_to_target(
    claim: str,
    first: tuple[str, Sequence[float]],
    second: tuple[str, Sequence[float]],
    rule: Rule,
    control: Control = (),
) -> Verdict:
    """Epochs to a target of the first minus those of the second, paired by seed.

    first, second: (name, epochs by seed).
    """
    gap = paired_interval(first[1], second[1])
    means = ", ".join(f"{name} {np.mean(epochs):.1f}" for name, epochs in (first, second))
    finding = f"epochs: {means}, difference {gap.effect:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
    measure = (
        "First epoch with a test error below the target; "
        "difference paired by seed, Student's 95 % interval."
    )
    values = {name: list(epochs) for name, epochs in (first, second)}
    outcome = rule.decide([gap])
    return Verdict(
        claim, measure, rule.words, outcome, (finding,), {"epochs": gap}, values, control
    )


# Values measured by seed.


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim on a value measured on one network, or on the difference of two networks."""

    text: str
    quantity: str
    """What is measured: each seed has measured[quantity][name], a number or a list to average."""
    names: tuple[str, ...]
    """The network; or the two networks, whose difference is first minus second."""
    rule: str
    """Name of one of the study's rules."""
    control: Control = ()


def judge_claims(
    claims: Sequence[Claim],
    rules: Mapping[str, Rule],
    measures: Mapping[str, tuple[str, str]],
    measured: Measured,
) -> list[Verdict]:
    """Judge each claim by its rule; differences are paired by seed.

    measures: by quantity, how it was measured and its unit.
    """
    verdicts = []
    for claim in claims:
        measure, unit = measures[claim.quantity]
        values = {
            name: [float(np.mean(seed[claim.quantity][name])) for seed in measured]
            for name in claim.names
        }
        paired = ", paired" if len(values) == 2 else ""
        measure = f"{measure} Student's 95 % interval over seeds{paired}."
        judge = difference_verdict if len(values) == 2 else mean_verdict
        verdicts.append(judge(claim.text, measure, rules[claim.rule], values, unit, claim.control))
    return verdicts


def mean_verdict(
    claim: str, measure: str, rule: Rule, values: Values, unit: str = "", control: Control = ()
) -> Verdict:
    """The mean over seeds of one value with Student's interval. values: by its name."""
    ((name, each),) = values.items()
    mean = mean_interval(each)
    finding = f"{name}: {format_interval(mean)}{unit}"
    outcome, by_name = rule.decide([mean]), {name: list(each)}
    return Verdict(claim, measure, rule.words, outcome, (finding,), {name: mean}, by_name, control)


def difference_verdict(
    claim: str, measure: str, rule: Rule, values: Values, unit: str = "", control: Control = ()
) -> Verdict:
    """The first of two values minus the second, paired by seed, with Student's interval."""
    (first, one), (second, other) = values.items()
    less = paired_interval(one, other)
    finding = (
        f"{first} {np.mean(one):.3g}{unit}, {second} {np.mean(other):.3g}{unit}; "
        f"difference {format_interval(less, '+')}"
    )
    outcome, by_name = rule.decide([less]), {name: list(each) for name, each in values.items()}
    effects = {"difference": less}
    return Verdict(claim, measure, rule.words, outcome, (finding,), effects, by_name, control)


def effects_as_ratios(verdict: Verdict) -> Verdict:
    """A verdict on log10 of ratios, with findings as ratios: '3.2 times [2.9, 3.5]'."""
    findings = (f"{name} {format_ratio(effect)}" for name, effect in verdict.effects.items())
    return dataclasses.replace(verdict, findings=tuple(findings))
