"""docs/results/README.md: what became of every claim of the lecture, from published results."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deepjax.io import write_text
from deepjax.study.claim import FAMILY
from deepjax.study.report.markdown import anchor, escape, format_p, sentence, table
from deepjax.study.report.procedure_text import how_it_was_tested
from deepjax.study.report.published import (
    DeclaredStudy,
    PublishedStudy,
    PublishedVerdict,
    read_studies,
)
from deepjax.study.report.slides import control_words, outcome_words, short_effects, slide

Studies = Mapping[str, PublishedStudy]

TITLE = """# Deep Into Deep, measured

The lecture "Deep Into Deep" explains how VGG, GoogLeNet and ResNet made networks deep; this page
puts its claims to the test, slide by slide. The networks are small and trained on a CPU, on 16,000
photographs of clothes (Fashion-MNIST, ten classes, 14x14 grey pixels), so a verdict is about such
networks, and each section says what it does not show.
"""

READING = """Errors are in per cent, and differences of errors in points. "a less b" is the value
of a minus that of b: for errors it is positive where b is better. The [glossary](../glossary.md)
explains the other terms.
"""

NOT_PUBLISHED = """**The judged runs of this edition are not published yet.** The verdicts of the
first edition were withdrawn because of [an audit](audit.md): many came from networks that a linear
classifier beats, from 360 test images, or from a learning rate that was chosen on a judged seed.
This edition tests the claims below, by rules that are in the code before the runs; the headline
claims are bold. `make studies` runs it; [studies](../studies.md) explains how,
[pilots](pilots/README.md) have the learning rates, and the [glossary](../glossary.md) the terms.
"""

LEGEND = {
    "supported": "the 95 % interval of the effect lies within what the claim says; the rule that "
    "decides was fixed before the runs",
    "refuted": "the interval lies outside of it",
    "inconclusive": "the interval lies on both sides, or the correction for many claims leaves it "
    'open; "What would settle it" says what is missing',
    "not trained": "a network of the claim is no better than a linear classifier, so comparing "
    "it shows nothing",
    "exact": "counted or computed, without chance",
    "unstable": "a second run, which differs only in rounding, has another verdict",
    "exploratory": "a hint, not a test: too few runs for the smallest effect of interest, or "
    "changed after a first look at results. The power that the pilots promise decides, not the "
    "one in the judged runs, which is printed next to it",
}


def write_page(
    results: Path, lecture: Sequence[DeclaredStudy], beyond: Sequence[DeclaredStudy]
) -> Path:
    """Write results/README.md from the results that are published there; returns its path.

    lecture, beyond: the studies in the order of the page. Those without results are listed with
    their claims.
    """
    names = [study.name for study in lecture]
    others = [study.name for study in beyond]
    small, small_beyond = (read_studies(results, each, "small") for each in (names, others))
    gpu = read_studies(results, names, "gpu") | read_studies(results, others, "gpu")
    found = small | small_beyond
    lines = [TITLE]
    lines += _summary(small) if found else [NOT_PUBLISHED]
    lines += ["", "## The lecture, slide by slide", ""]
    for i, study in enumerate(lecture, 1):
        lines += _section(f"{i}. {study.title}", "The lecture", study, small, gpu)
    lines += ["## Beyond the lecture", ""]
    if beyond:
        lines += [_BEYOND if small_beyond or not small else f"{_BEYOND} {_NOT_RUN}", ""]
    for study in beyond:
        lines += _section(study.title, "The literature", study, small_beyond, gpu)
    if found:
        lines += _all_others(found)
        lines += how_it_was_tested(results, found, gpu)
    path = results / "README.md"
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return path


_BEYOND = (
    "Questions that the lecture leaves open, from the literature. Their claims are not corrected "
    "for their number."
)
_NOT_RUN = "None of them is judged yet: the sentences below are claims, not findings."


def _summary(studies: Studies) -> list[str]:
    """The legend, the headline claims with their verdicts, and the controls that failed."""
    headline = [
        (study, verdict)
        for study in studies.values()
        for verdict in study.claims
        if verdict.values["headline"]
    ]
    legend = table(("verdict", "meaning"), LEGEND.items())
    lines = ["", *legend, "", READING, *_failed(studies)]
    if not headline:
        return lines
    lines += [
        "## The headline claims",
        "",
        f"Headline claims: {_counts([verdict for _, verdict in headline])}",
        "",
        "All claims of the lecture's sections: "
        f"{_counts([each for study in studies.values() for each in study.claims])}",
        "",
        "The measured claims are one family: their "
        f"verdicts are corrected for {FAMILY} claims by Holm's method, so that the chance of even "
        "one false verdict among them is at most 5 %. The intervals are those of each claim alone: "
        "of errors over seeds, test images and the choice of learning rates, of other values over "
        "seeds. A claim is exploratory where the pilots promised it too little power, or where it "
        "was changed after a look at results: its verdict is a hint.",
        "",
    ]
    rows = []
    for study, verdict in headline:
        effect, interval = short_effects(verdict)
        link = f"[{escape(verdict.claim)}](#{study.name})"
        rows.append([link, outcome_words(verdict).rstrip("."), effect, interval])
    return [*lines, *table(("claim", "verdict", "effect", "95 % interval"), rows)]


def _counts(verdicts: Sequence[PublishedVerdict]) -> str:
    """'6 measured: 4 supported, 2 refuted. 1 exploratory: 1 supported. 3 exact: 3 supported.'"""
    parts = []
    for kind in ("measured", "exploratory", "exact"):
        of_kind = [each for each in verdicts if _kind(each) == kind]
        outcomes = [each.outcome for each in of_kind]
        counts = [f"{outcomes.count(each)} {each}" for each in _OUTCOMES if each in outcomes]
        unstable = sum(each.is_unstable for each in of_kind)
        if outcomes:
            found = ", ".join(counts) + (f" ({unstable} unstable)" if unstable else "")
            parts.append(f"{len(outcomes)} {kind}: {found}.")
    return " ".join(parts)


def _kind(verdict: PublishedVerdict) -> str:
    if verdict.values["exact"]:
        return "exact"
    return "exploratory" if verdict.values["exploratory"] else "measured"


_OUTCOMES = ("supported", "refuted", "inconclusive", "not trained")


def _failed(studies: Studies) -> list[str]:
    """The controls with an unexpected outcome."""
    found = [
        f"- [{_name(study)}](#{study.name}-others): {escape(each.claim)} {control_words(each)}"
        for study in studies.values()
        for each in study.controls
        if each.is_failed_control
    ]
    if not found:
        return []
    intro = "**Controls with an unexpected outcome; the verdicts of these studies are in doubt:**"
    return [intro, "", *found, ""]


def _section(
    heading: str, source: str, study: DeclaredStudy, studies: Studies, gpu: Studies
) -> list[str]:
    """The section of one study, or its claims where it has no results."""
    published = studies.get(study.name)
    if published is not None:
        return slide(heading, source, published, gpu.get(study.name))
    lines = [anchor(study.name), "", f"### {escape(heading)}", ""]
    lines += [f"*{source}: {escape(sentence(study.lecture))}*", ""]
    if studies:
        lines += ["Not run yet. Its claims:", ""]
    for claim in study.claims:
        mark = "**" if claim in study.headline else ""
        lines.append(f"- {mark}{escape(claim)}{mark}")
    return [*lines, ""]


def _all_others(studies: Studies) -> Iterable[str]:
    """A table for each study: what its section does not show, then the study's own tables."""
    yield from ("## All other claims and controls", "")
    for study in studies.values():
        rows = [_other_row(each) for each in study.verdicts if each not in study.shown]
        yield from (anchor(f"{study.name}-others"), "", f"### {_name(study)}", "")
        if rows:
            yield from table(("outcome", "claim or control", "effect", "95 % interval", "p"), rows)
            yield ""
        for extra in study.record["tables"]:
            yield from (escape(sentence(extra["caption"])), "")
            cells = [[escape(each) for each in row] for row in extra["rows"]]
            yield from table([escape(each) for each in extra["header"]], cells)
            yield ""


def _other_row(verdict: PublishedVerdict) -> list[str]:
    effect, interval = short_effects(verdict, most=3)
    words = control_words(verdict) if verdict.is_control else outcome_words(verdict).rstrip(".")
    return [words, escape(verdict.claim), effect, interval, format_p(verdict.values["p"])]


def _name(study: PublishedStudy) -> str:
    return study.name.replace("_", " ").capitalize()
