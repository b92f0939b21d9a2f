"""Claims and controls as data, and how they are judged."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from deepjax.study.baselines import baseline
from deepjax.study.quantity import Quantity, Split
from deepjax.study.results import StudyResults
from deepjax.study.stats.holm import first_level
from deepjax.study.stats.intervals import (
    LEVEL,
    Sample,
    complete_interval,
    components,
    seeds_interval,
)
from deepjax.study.stats.power import joint_power, what_settles
from deepjax.study.stats.rules import Rule
from deepjax.study.stats.verdict import Effect, Outcome, Verdict, with_unit

BOTH: tuple[Split, ...] = ("train", "test")
TRAIN: tuple[Split, ...] = ("train",)
TEST: tuple[Split, ...] = ("test",)
WORDS = {"train": "training error", "test": "test error"}
FAMILY = 19
"""Number of headline claims of the lecture that are measured; Holm's correction is for them."""
SAME_LEVEL = 0.005
"""Level of controls that compare an arm with itself: one in 200 fails by chance."""
UNDERPOWERED = "the pilots promise less than 80 % power at the smallest effect of interest"
CHANGED = "changed after a first look at results"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A quantity, a rule and a text, fixed before the runs."""

    text: str
    quantity: Quantity | Sequence[Quantity]
    """Or several, all of which the rule must hold for."""
    rule: Rule
    sets: tuple[Split, ...] = TEST
    """Images of the errors in it."""
    interest: float = 0.0
    """Smallest effect of interest: distance from the rule's bound, in the quantity's unit."""
    headline: bool = False
    """Whether it is one of the lecture's headline claims, which are corrected for their number."""
    exploratory: str = ""
    """Why it is exploratory: `UNDERPOWERED`, `CHANGED` or another reason."""
    gate: bool = True
    """Whether every arm in it must beat the linear baseline before it is judged."""
    measures: tuple[str, ...] = ()
    """Arms whose trained networks the quantity was measured on: they must beat it too, and a seed
    in which one diverges is not measured."""

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """One or several."""
        if isinstance(self.quantity, Quantity):
            return (self.quantity,)
        return tuple(self.quantity)


@dataclasses.dataclass(frozen=True)
class Control(Claim):
    """A claim whose outcome is known; another outcome shows a fault of the experiment."""

    expected: tuple[Outcome, ...] = ("refuted",)
    level: float = LEVEL
    defect: bool = False
    """Whether it is the study's planted defect."""


@dataclasses.dataclass(frozen=True)
class ExactClaim:
    """A claim of arithmetic or of exact counts, which needs no seeds."""

    text: str
    rule: str
    check: Callable[[], tuple[bool, str]]
    """Whether it holds, and what was found."""
    expected: tuple[Outcome, ...] = ()
    """For a control."""
    headline: bool = False


AnyClaim = Claim | ExactClaim


def judge_claims(claims: Sequence[AnyClaim], results: StudyResults) -> list[Verdict]:
    """The verdicts; claims on arms that this preset does not run are left out."""
    return [
        judge_exact(claim) if isinstance(claim, ExactClaim) else judge_claim(claim, results)
        for claim in claims
        if isinstance(claim, ExactClaim) or is_there(claim, results)
    ]


def is_there(claim: Claim, results: StudyResults) -> bool:
    """Whether the results have every arm of a claim."""
    return all(arm in results.arms for arm in (*_arms(claim), *claim.measures))


def judge_exact(claim: ExactClaim) -> Verdict:
    """The verdict of an exact claim."""
    holds, found = claim.check()
    outcome: Outcome = "supported" if holds else "refuted"
    return Verdict(
        claim.text,
        claim.rule,
        outcome,
        findings=[found],
        control=claim.expected,
        headline=claim.headline,
        exact=True,
    )


def judge_claim(claim: Claim, results: StudyResults) -> Verdict:
    """The verdict of a measured claim."""
    parts: list[tuple[Quantity, Split, Sample]] = [
        (quantity, split, quantity.sample(results, split))
        for quantity in claim.quantities
        for split in (claim.sets if quantity.arms else claim.sets[:1])
    ]
    control = isinstance(claim, Control)
    level = claim.level if isinstance(claim, Control) else LEVEL
    intervals = [complete_interval(sample) for _, _, sample in parts]
    decision = claim.rule.decide(intervals, level)
    outcome, p = decision.outcome, decision.p
    if any(not np.isfinite(each.effect) for each in intervals):
        outcome, p = "inconclusive", 1.0
    untrained = untrained_arms(claim, results) if claim.gate else []
    if untrained:
        outcome, p = "not trained", 1.0
    effects = [_effect(quantity, split, sample, level) for quantity, split, sample in parts]
    unit = effects[0].unit
    return Verdict(
        claim.text,
        claim.rule.words(unit, level, len(parts)),
        outcome,
        effects,
        findings=[*_arm_errors(claim, results), *untrained, *_excluded(claim, effects, outcome)],
        p=p,
        control=claim.expected if isinstance(claim, Control) else (),
        headline=claim.headline,
        exploratory=claim.exploratory,
        settles=_settles(claim, parts) if not control and _is_open(claim, outcome, p) else "",
        power="" if control else _power(claim, parts),
    )


def untrained_arms(claim: Claim, results: StudyResults) -> list[str]:
    """A sentence for each arm that does not beat the linear baseline on a set of the claim."""
    found = []
    for arm in dict.fromkeys((*_arms(claim), *claim.measures)):
        result = results.arms[arm]
        linear = baseline(result.dataset)
        for split in claim.sets:
            least = linear.linear_train if split == "train" else linear.linear_test
            mean = float(result.misclassified[split].mean())
            if mean >= least:
                found.append(
                    f"not trained: {_label(arm)} has {100 * mean:.2f} % {WORDS[split]}, "
                    f"a linear classifier {100 * least:.2f} %"
                )
    return found


def _arms(claim: Claim) -> list[str]:
    return list(dict.fromkeys(arm for each in claim.quantities for arm in each.arms))


def _effect(quantity: Quantity, split: Split, sample: Sample, level: float) -> Effect:
    found, interval = components(sample), complete_interval(sample)
    name = f"{WORDS[split]}, {quantity.name}" if quantity.arms else quantity.name
    return Effect(
        name,
        quantity.unit,
        interval.effect,
        seeds_interval(sample).bounds(level),
        interval.bounds(level),
        tuple(map(float, sample.by_seed)),
        {"seeds": found.seeds, "images": found.images, "selection": found.selection},
    )


def _arm_errors(claim: Claim, results: StudyResults) -> list[str]:
    """The mean error of every arm in the claim, one sentence a set."""
    arms = _arms(claim)
    return [
        f"{WORDS[split]}: "
        + ", ".join(f"{_label(arm)} {100 * results.arms[arm].error(split):.2f} %" for arm in arms)
        for split in (claim.sets if arms else ())
    ]


def _excluded(claim: Claim, effects: Sequence[Effect], outcome: Outcome) -> list[str]:
    """For an open claim about more or less than 0: the effects that its interval excludes."""
    if outcome != "inconclusive" or len(effects) > 1 or 0 not in (claim.rule.low, claim.rule.high):
        return []
    low, high = effects[0].complete
    bound = high if claim.rule.low == 0 else -low
    if bound <= 0:
        return []
    return [f"an effect of {with_unit(bound, effects[0].unit, '.2g')} or more is excluded"]


def _power(claim: Claim, parts: Sequence[tuple[Quantity, Split, Sample]]) -> str:
    """Power at the smallest effect of interest, by the errors of the judged runs themselves."""
    if not claim.interest:
        return ""
    level = first_level(FAMILY) if claim.headline else LEVEL
    samples = [each for _, _, each in parts]
    found = joint_power(
        [components(each) for each in samples],
        len(samples[0].by_seed),
        _images(samples[0]),
        claim.rule.distances(claim.interest),
        level,
    )
    if not np.isfinite(found):
        return ""
    unit = parts[0][0].unit
    corrected = " after Holm's correction" if claim.headline else ""
    return f"{100 * found:.0f} % power at {with_unit(claim.interest, unit)}{corrected}"


def _is_open(claim: Claim, outcome: Outcome, p: float) -> bool:
    """Whether a claim is inconclusive, or may be so after the correction of the headline claims."""
    return outcome == "inconclusive" or (
        outcome != "not trained" and claim.headline and p > first_level(FAMILY)
    )


def _settles(claim: Claim, parts: Sequence[tuple[Quantity, Split, Sample]]) -> str:
    """What gives 80 % power at the smallest effect of interest.

    At the observed effect, where there is no such effect or the seeds sufficed for it.
    """
    level = first_level(FAMILY) if claim.headline else LEVEL
    worst = max((each for _, _, each in parts), key=lambda each: complete_interval(each).error)
    seeds, images, unit = len(worst.by_seed), _images(worst), parts[0][0].unit
    bounds = [bound for bound in (claim.rule.low, claim.rule.high) if np.isfinite(bound)]
    observed = min(abs(complete_interval(worst).effect - bound) for bound in bounds)
    if not np.isfinite(observed):
        return ""
    words = {claim.interest: "", observed: "the observed distance from the bound, "}
    for effect in (claim.interest, observed):
        if effect:
            needed = what_settles(components(worst), seeds, images, effect, level)
            if needed != f"{seeds} seeds":
                at = words[effect] + with_unit(effect, unit, ".3g")
                return f"80 % power at {at} needs {needed}"
    return ""


def _images(sample: Sample) -> int:
    return 1 if sample.by_image is None else sample.by_image.shape[1]


def _label(arm: str) -> str:
    return arm.replace("_", " ")
