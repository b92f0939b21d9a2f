"""The page of results, from made-up results with every kind of outcome."""

import dataclasses
import json
import re

import pytest

from deepjax.study.claim import FAMILY
from deepjax.study.report.markdown import escape, format_interval, format_p, format_value
from deepjax.study.report.page import write_page
from deepjax.study.report.published import SECOND, read_studies
from tests.study.report import fabricated
from tests.study.report.fabricated import ALL_KINDS, declared, record, verdict, write

LECTURE, BEYOND = declared("degradation", "small_filters"), declared("stochastic_depth")


@pytest.fixture
def page(tmp_path) -> str:
    """A page with one study of every outcome, run twice, and one that goes beyond the lecture."""
    table = {"caption": "Winners", "header": ["year"], "rows": [["2012"], ["a | b"]]}
    write(tmp_path, record("degradation", ALL_KINDS, tables=[table]))
    again = [dataclasses.replace(ALL_KINDS[0], outcome="inconclusive", p=0.2), *ALL_KINDS[1:]]
    write(tmp_path, record("degradation", again), SECOND)
    alone = verdict("It helps.", "supported", 0.01, headline=False)
    write(tmp_path, record("stochastic_depth", [alone]))
    return write_page(tmp_path, LECTURE, BEYOND).read_text()


def row(page: str, claim: str) -> list[str]:
    """The cells of the first row of a table that has a claim."""
    line = next(line for line in page.splitlines() if line.startswith("| ") and claim in line)
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_headline_claims_have_their_verdict_after_the_correction(page):
    assert row(page, "Strong.") == [
        "[Strong.](#degradation)",
        "Unstable: supported, in the second run inconclusive",
        "test error, a less b: +2.00 points",
        "[+1.00, +3.00]",
    ]
    assert row(page, "Weak.")[1] == "Inconclusive"  # p = 0.03 alone
    assert row(page, "Opposite.")[1:3] == ["Refuted", "test error, a less b: -2.00 points"]
    assert row(page, "Open.")[2] == "training error: +0.10 points<br>test error: +0.20 points"
    assert row(page, "Bad.")[1:] == ["Not trained", "not trained: a has 20.00 % test error", ""]
    assert row(page, "Hint.")[1] == "Supported (exploratory: too little power)"
    assert row(page, "Counted.")[1:3] == ["Exact, supported", r"138,357,544 \| 124 M"]
    counted = "1 supported, 1 refuted, 2 inconclusive, 1 not trained (1 unstable)"
    assert f"5 measured: {counted}. 1 exploratory: 1 supported. 1 exact: 1 supported." in page


def test_a_section_has_both_intervals_what_settles_it_and_its_limits(page):
    section = page[page.index("### 1. What about degradation?") : page.index("### 2. ")]
    assert "*The lecture: the lecture on degradation.*" in section
    assert (
        "test error, a less b: **+2.00 points**, 95 % interval [+1.00, +3.00] over seeds, images "
        "and rates; [+1.30, +2.70] over seeds alone"
    ) in section
    assert "95 % power at 2 points." in section
    corrected = f"corrected for {FAMILY} claims p = {0.03 * (FAMILY - 3):.2g}"  # the fourth of all
    assert f"p = 0.03; {corrected}. Alone it would be supported." in section
    assert section.count("What would settle it: 80 % power at 2 points needs 14 seeds.") == 2
    assert "![Errors.](degradation-small/error.png)" in section
    assert "**Tested:** fashion\\_mnist\\_small: 16,000" in section and "90 s on 1 x cpu" in section
    assert "1 of 2 controls came out as they must." in section
    assert "**Not shown:** Not that this holds elsewhere." in section
    assert "(degradation-small/report.html)" in section
    assert "- Supported. Measured. exponent: 1.90 [1.80, 2.00]" in section
    assert "Planted defect" not in section


def test_a_figure_whose_title_the_correction_changes_says_so(tmp_path):
    write(tmp_path, record("degradation", [ALL_KINDS[1]]))
    page = write_page(tmp_path, LECTURE, ()).read_text()
    assert f"corrected for {FAMILY} claims it is inconclusive" in page
    write(tmp_path, record("degradation", [ALL_KINDS[0]]))
    assert "claims it is" not in write_page(tmp_path, LECTURE, ()).read_text()


def test_a_study_without_results_has_its_claims(page):
    section = page[page.index("### 2. ") : page.index("## Beyond the lecture")]
    assert "Not run yet" in section and "- **Claim of small\\_filters.**" in section
    assert "- Other claim of small\\_filters." in section


def test_beyond_the_lecture_nothing_is_a_headline_claim(page):
    section = page[page.index("## Beyond the lecture") : page.index("## All other claims")]
    assert "*The literature: " in section and "**Supported.** It helps." in section
    assert "It helps." not in page[: page.index("## The lecture")]
    assert "corrected for" not in section.replace("are not corrected for", "")


def test_the_power_of_the_pilots_stands_next_to_that_of_the_runs(tmp_path):
    write(tmp_path, record("degradation", ALL_KINDS))
    (tmp_path / "pilots").mkdir()
    (tmp_path / "pilots" / "degradation-small.json").write_text(
        json.dumps({"power": {"Strong.": {"power": 0.86}}})
    )
    page = write_page(tmp_path, LECTURE, ()).read_text()
    assert "- Power at 2 points: 86 % promised by the pilots, 95 % in these runs." in page


def test_other_claims_controls_and_tables_follow(page):
    section = page[page.index("## All other claims") : page.index("## How it was tested")]
    assert row(section, "Measured.") == [
        "Supported",
        "Measured.",
        "exponent: 1.90",
        "[1.80, 2.00]",
        "0.01",
    ]
    assert row(section, "The same network")[0] == "control: inconclusive, as it must be"
    assert row(section, "Planted")[0] == "**control failed**: inconclusive, must be supported"
    assert "Winners." in section and "| a \\| b |" in section
    assert "Counted too." in section and "Strong." not in section
    assert "in doubt" in page[: page.index("## The headline claims")]


def test_unstable_verdicts_are_listed(page):
    section = page[page.index("## How it was tested") :]
    assert "1 of 2 studies ran a second time" in section
    assert "Of 11 verdicts and controls 1 differ" in section
    assert row(section, "Strong.") == ["degradation", "Strong.", "supported", "inconclusive"]
    assert "CPUs: 2 studies, 3 minutes in all without the pilots, on 1 x cpu" in section


def test_a_second_run_of_another_protocol_does_not_count(tmp_path):
    write(tmp_path, record("degradation", [ALL_KINDS[0]]))
    other = dataclasses.replace(ALL_KINDS[0], outcome="refuted")
    write(tmp_path, record("degradation", [other], protocol="other"), SECOND)
    page = write_page(tmp_path, LECTURE, ()).read_text()
    assert "nstable: " not in page and "second time" not in page


def test_holm_counts_the_family_over_all_studies_and_claims_that_are_missing(tmp_path):
    """The least p-value is multiplied by the family's number, the next one by one less."""
    p = 0.05 / (FAMILY - 0.5)  # between the first and the second level
    for first, outcome in ((p, "inconclusive"), (0.0001, "supported")):
        write(tmp_path, record("degradation", [verdict("A.", "supported", first)]))
        write(tmp_path, record("small_filters", [verdict("B.", "supported", p)]))
        found = read_studies(tmp_path, ["degradation", "small_filters"], "small")
        (b,) = found["small_filters"].verdicts
        assert b.outcome == outcome
        assert b.adjusted == pytest.approx(p * (FAMILY if first == p else FAMILY - 1))
    not_trained = verdict("B.", "not trained", 1.0)
    write(tmp_path, record("small_filters", [not_trained]))
    found = read_studies(tmp_path, ["degradation", "small_filters"], "small")
    assert found["small_filters"].verdicts[0].outcome == "not trained"


def test_results_on_a_gpu_are_in_the_section(tmp_path):
    write(tmp_path, record("degradation", ALL_KINDS))
    write(tmp_path, record("degradation", ALL_KINDS, preset="gpu", hardware="1 x H200"))
    page = write_page(tmp_path, LECTURE, ()).read_text()
    section = page[page.index("**On a GPU:**") : page.index("### 2. ")]
    assert row(section, "Weak.")[0] == "Inconclusive" and "90 s on 1 x H200" in section
    assert "On GPUs: 1 study, 2 minutes" in page and "(degradation-gpu/report.html)" in section


def test_without_results_the_page_says_so_and_lists_the_claims(tmp_path):
    page = write_page(tmp_path, LECTURE, BEYOND).read_text()
    assert "not published yet" in page and "[an audit](audit.md)" in page
    assert "- **Claim of degradation.**" in page and "stochastic" in page
    for word in ("supported |", "## How it was tested", "## The headline claims"):
        assert word not in page


def test_the_simulated_procedure_is_stated_as_far_as_it_is_there(tmp_path):
    write(tmp_path, record("degradation", ALL_KINDS))
    path = tmp_path / "procedure.json"
    path.write_text("{}")
    assert "simulated" not in write_page(tmp_path, LECTURE, ()).read_text()
    rates = {"alone": {"rate": 0.041}, "family": {"rate": 0.02}}
    power = {"0.3 points": {"1": {"headline": {"rate": 0.8}}}}
    found = {"studies": 10, "false_positives": {"a": rates}, "limits": {"b": rates}}
    path.write_text(json.dumps(found | {"power": power}))
    page = write_page(tmp_path, LECTURE, ()).read_text()
    assert row(page, "| a |") == ["a", "4.1 %", "2.0 %"]
    assert row(page, "| 0.3 points |") == ["0.3 points", "80 %"]
    assert page.index("| a |") < page.index("promises less") < page.index("| b |")


def test_every_link_inside_the_page_has_its_place(page):
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= set(re.findall(r'<a id="([\w-]+)">', page))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234, " points", "+1.23"),
        (-0.001, " points", "0.00"),
        (0.0, "", "0.00"),
        (12.345, "", "12.3"),
        (123456.0, "", "1.23e+05"),
        (1234.5, "", "1,234"),
        (0.00123, "", "0.00123"),
        (1e-7, "", "1.00e-07"),
        (float("nan"), "", "undefined"),
    ],
)
def test_numbers(value, unit, text):
    assert format_value(value, unit) == text


def test_texts():
    assert format_interval((-1.0, 2.0), " points") == "[-1.00, +2.00]"
    assert [format_p(p) for p in (None, 0.5, 0.0123, 1e-9)] == ["", "0.5", "0.012", "< 0.0001"]
    assert escape("a|b *c* d_e <f>\ng") == r"a\|b \*c\* d\_e &lt;f> g"
    assert fabricated.SECOND == SECOND
