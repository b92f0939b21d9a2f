"""docs/lecture.md: its numbers and verdicts are those of the published result.json of each study.

Effects are compared by value, so a study may be published again under other words.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
REPORT = re.compile(r"\[Report of this study\]\(results/(\w+)-small/report\.html\)")
TEXT = (ROOT / "docs" / "lecture.md").read_text()
SECTIONS = {
    study: section
    for section in re.split(r"\n## ", TEXT)
    for study in re.findall(
        r"\[Report of this study\]\(results/(\w+)-small/report\.html\)", section
    )
}
STUDIES = {path.parent.name.removesuffix("-small") for path in RESULTS.glob("*-small/result.json")}
LECTURE = {study for study in STUDIES if f"results/{study}-small/" in TEXT}

ITEM = re.compile(r"^- \*\*(?P<verdict>[^*]*)\.\*\* (?P<text>.*?)(?=\n\n|\n- |\Z)", re.M | re.S)
EFFECT = re.compile(
    r"(?P<mean>[+-]?\d+\.\d+)(?:\s+(?:points|pixels))?\s+\[(?P<low>[^],]+),\s+(?P<high>[^]]+)\]"
)
NUMBER = re.compile(r"\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+|\d+(?= ?%| million)")


def result(study: str) -> dict:
    return json.loads((RESULTS / f"{study}-small" / "result.json").read_text())


def rounded(number: float, like: str) -> bool:
    """Whether a number, rounded to the digits of a text, is that text."""
    digits = len(like.partition(".")[2])
    return f"{number:.{digits}f}" == f"{float(like):.{digits}f}"


def verdicts_of(effect: re.Match[str], study: str) -> set[str]:
    """The verdicts of the claims that have this effect, as the page words them."""
    return {
        each["outcome"] + (" (exploratory)" if each["exploratory"] else "")
        for each in result(study)["verdicts"]
        for found in each["effects"]
        if rounded(found["mean"], effect["mean"])
        and rounded(found["complete"][0], effect["low"])
        and rounded(found["complete"][1], effect["high"])
    }


def test_each_section_has_a_study_and_its_figures():
    assert SECTIONS.keys() == LECTURE
    for study, section in SECTIONS.items():
        figures = re.findall(r"!\[[^\]]+\]\(results/(\S+)/\w+\.png\)", section)
        assert figures and set(figures) == {f"{study}-small"}


@pytest.mark.parametrize("study", sorted(SECTIONS))
def test_effects_and_verdicts_are_those_of_the_study(study):
    items = list(ITEM.finditer(SECTIONS[study]))
    assert items
    for item in items:
        verdict = item["verdict"].lower()
        effects = list(EFFECT.finditer(item["text"]))
        assert bool(effects) != verdict.startswith("exact")
        assert item["text"].count("[") == len(effects)
        for effect in effects:
            assert verdict in verdicts_of(effect, study), f"{verdict}: {effect[0]}"


@pytest.mark.parametrize("study", sorted(SECTIONS))
def test_exact_verdicts_are_those_of_claims_with_their_numbers(study):
    for item in ITEM.finditer(SECTIONS[study]):
        kind, _, outcome = item["verdict"].lower().partition(", ")
        if kind != "exact":
            continue
        numbers = set(NUMBER.findall(item["text"]))
        texts = [
            " ".join([each["claim"], *each["findings"]])
            for each in result(study)["verdicts"]
            if each["exact"] and each["outcome"] == outcome
        ]
        assert any(numbers <= set(NUMBER.findall(text)) for text in texts), item["text"]


@pytest.mark.parametrize("study", sorted(SECTIONS))
def test_all_other_numbers_are_in_the_result(study):
    known = set(NUMBER.findall(json.dumps(result(study), ensure_ascii=False)))
    text = EFFECT.sub("", SECTIONS[study])
    assert sorted(set(NUMBER.findall(text)) - known) == []
