"""One study on the page of results: its claims with their numbers, one figure, what was tested."""

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

from deepjax.study.claim import FAMILY
from deepjax.study.report.markdown import (
    anchor,
    escape,
    format_effect,
    format_interval,
    format_p,
    sentence,
    table,
)
from deepjax.study.report.published import PublishedStudy, PublishedVerdict

MOST_EFFECTS = 6  # of one claim that are listed; its report has them all


def slide(
    heading: str, source: str, study: PublishedStudy, gpu: PublishedStudy | None = None
) -> list[str]:
    """The lines of a section.

    source: who says it, such as "The lecture"; gpu: results of the preset "gpu".
    """
    record = study.record
    lines = [anchor(study.name), "", f"### {escape(heading)}", ""]
    lines += [f"*{source}: {escape(sentence(record['lecture']))}*", ""]
    lines += [escape(record["method"]), ""]
    for verdict in study.shown:
        lines += [f"**{outcome_words(verdict)}** {escape(verdict.claim)}", ""]
        promised = study.promised.get(verdict.claim)
        lines += [f"- {line}" for line in numbers(verdict, promised)]
        lines += [""]
    lines += _figure(study)
    lines += _also_tested(study)
    lines += [f"**Tested:** {escape(sentence(record['protocol']))} {_origin(study)}", ""]
    lines += [f"**Not shown:** {escape(sentence(record['limits']))}", ""]
    if gpu is not None:
        lines += _on_gpu(gpu)
    lines += [_links(study), ""]
    return lines


def _also_tested(study: PublishedStudy) -> list[str]:
    """A line for each claim that is not a headline claim."""
    if not study.others:
        return []
    lines = ["**Also tested:**", ""]
    for verdict in study.others:
        effects, intervals = (each.split("<br>") for each in short_effects(verdict))
        pairs = zip_longest(effects, intervals, fillvalue="")
        found = "; ".join(f"{effect} {interval}".strip() for effect, interval in pairs)
        lines.append(f"- {outcome_words(verdict)} {escape(verdict.claim)} {found}".rstrip())
    return [*lines, ""]


def outcome_words(verdict: PublishedVerdict) -> str:
    """'Supported.', with what restricts it: exact, exploratory, unstable."""
    words = "Exact, " + verdict.outcome if verdict.values["exact"] else verdict.outcome.capitalize()
    if verdict.is_unstable:
        words = f"Unstable: {verdict.outcome}, in the second run {verdict.second}"
    if verdict.values["exploratory"]:
        words += f" (exploratory: {escape(verdict.values['exploratory'])})"
    return f"{words}."


def numbers(verdict: PublishedVerdict, promised: float | None = None) -> list[str]:
    """What a reader needs to check the outcome by hand, one line each.

    promised: the power that the pilots promise the claim.
    """
    values = verdict.values
    effects = values["effects"]
    lines = [_effect_line(effect) for effect in effects[:MOST_EFFECTS]]
    if len(effects) > MOST_EFFECTS:
        lines.append(f"{len(effects) - MOST_EFFECTS} more in the report")
    lines += [escape(finding) for finding in values["findings"]]
    rule = f"{escape(values['rule'].split('; ')[0].rstrip('.'))}."
    lines.append(" ".join(filter(None, [rule, _p_words(verdict)])))
    if values["power"]:
        lines.append(escape(sentence(_power_words(values["power"], promised))))
    if verdict.outcome == "inconclusive":
        lines.append(f"What would settle it: {escape(sentence(_settles(verdict)))}")
    return lines


def short_effects(verdict: PublishedVerdict, most: int = 2) -> tuple[str, str]:
    """Effects and intervals for a row of a table, a line for each part of the claim."""
    effects = verdict.values["effects"]
    if not effects or verdict.outcome == "not trained":
        findings = [
            finding
            for finding in verdict.values["findings"]
            if not effects or finding.startswith("not trained")
        ]
        return "<br>".join(map(escape, findings)), ""
    heads = [effect["name"].split(", ")[0] for effect in effects]
    if len(set(heads)) < len(heads):
        heads = [effect["name"] for effect in effects]
    found, intervals = [], []
    for head, effect in zip(heads[:most], effects[:most], strict=True):
        name = head if len(effects) > 1 else effect["name"]
        found.append(f"{escape(name)}: {format_effect(effect)}")
        intervals.append(format_interval(effect["complete"], effect["unit"]))
    if len(effects) > most:
        found.append(f"{len(effects) - most} more")
    return "<br>".join(found), "<br>".join(intervals)


def control_words(verdict: PublishedVerdict) -> str:
    """The outcome of a control and whether it had to be."""
    if verdict.is_failed_control:
        must = " or ".join(verdict.values["control"])
        return f"**control failed**: {verdict.outcome}, must be {must}"
    return f"control: {verdict.outcome}, as it must be"


def _power_words(found: str, promised: float | None) -> str:
    """The power in these runs, and the one of the pilots, which decides what is exploratory."""
    if promised is None:
        return found
    power, _, rest = found.partition(" power at ")
    return f"Power at {rest}: {100 * promised:.0f} % promised by the pilots, {power} in these runs"


def _effect_line(effect: Mapping[str, Any]) -> str:
    unit = effect["unit"]
    complete = format_interval(effect["complete"], unit)
    line = f"{escape(effect['name'])}: **{format_effect(effect)}**, 95 % interval "
    if list(effect["seeds"]) == list(effect["complete"]):
        return f"{line}{complete} over seeds"
    seeds = format_interval(effect["seeds"], unit)
    return f"{line}{complete} over seeds, images and rates; {seeds} over seeds alone"


def _p_words(verdict: PublishedVerdict) -> str:
    p = verdict.values["p"]
    if p is None or verdict.outcome == "not trained":
        return ""
    words = f"{_p_is(p)}."
    if verdict.adjusted is not None:
        words = f"{_p_is(p)}; corrected for {FAMILY} claims {_p_is(verdict.adjusted)}."
    if verdict.is_changed:
        words += f" Alone it would be {verdict.values['outcome']}."
    return words


def _p_is(p: float) -> str:
    return f"p = {format_p(p)}".replace("= <", "<")


def _settles(verdict: PublishedVerdict) -> str:
    return verdict.values["settles"] or (
        "a repetition with more seeds; no number of seeds follows from these results"
    )


def _figure(study: PublishedStudy) -> list[str]:
    """The first figure with its caption."""
    if not study.record["figures"]:
        return []
    figure = study.record["figures"][0]
    caption = escape(figure["caption"])
    verdict = study.verdict(figure.get("claim", ""))
    if verdict is not None and verdict.is_changed:
        caption += (
            f" The title has the verdict of this claim alone; corrected for {FAMILY} claims it is "
            f"{verdict.outcome}."
        )
    return [f"![{caption}]({study.folder}/{figure['file']})", "", caption, ""]


def _origin(study: PublishedStudy) -> str:
    record = study.record
    failed = sum(each.is_failed_control for each in study.controls)
    count = len(study.controls)
    controls = f"{count - failed} of {count} controls came out as they must. " if count else ""
    return f"{controls}{record['wall_seconds']:,.0f} s on {escape(record['hardware'])}."


def _links(study: PublishedStudy) -> str:
    folder = study.folder
    found = [
        f"[Report with every figure and number]({folder}/report.html)",
        f"[result.json]({folder}/result.json)",
    ]
    if study.record["tables"] or len(study.verdicts) > len(study.shown):
        found.append(f"[other claims, controls and tables](#{study.name}-others)")
    return " · ".join(found)


def _on_gpu(gpu: PublishedStudy) -> Iterable[str]:
    """The same claims in the preset "gpu"."""
    rows = []
    for verdict in gpu.claims:
        effect, interval = short_effects(verdict)
        if not verdict.values["exact"]:
            words = outcome_words(verdict).rstrip(".")
            rows.append([words, escape(verdict.claim), effect, interval])
    yield f"**On a GPU:** {escape(sentence(gpu.record['protocol']))} {_origin(gpu)}"
    yield ""
    yield from table(("verdict", "claim", "effect", "95 % interval"), rows)
    yield ""
    yield f"[Report]({gpu.folder}/report.html) · [result.json]({gpu.folder}/result.json)"
    yield ""
