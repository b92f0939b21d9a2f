"""The report of a study: figures first, then verdicts with every number behind them."""

import dataclasses
import html
from collections.abc import Mapping, Sequence

from deepjax.html_page import (
    Figure,
    Table,
    definitions_html,
    figure_html,
    page_html,
    table_html,
)
from deepjax.study.report.format import format_outcome
from deepjax.study.stats.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Page:
    """The parts of the page."""

    title: str
    question: str
    verdicts: Sequence[Verdict]
    method: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    limits: Sequence[str]
    provenance: Mapping[str, str]


def render(page: Page) -> str:
    """The page as HTML text with embedded figures."""
    parts = [
        f"<p class=question>{html.escape(page.question)}</p>",
        *map(figure_html, page.figures),
        *map(_verdict, page.verdicts),
        "<h2>What was done</h2>",
        *[f"<p>{html.escape(text)}</p>" for text in page.method],
        "<h2>The numbers</h2>",
        *map(table_html, page.tables),
        "<h2>What this does not show</h2>",
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in page.limits) + "</ul>",
        "<h2>Run it again</h2>",
        definitions_html(page.provenance),
    ]
    return page_html(page.title, parts)


def _verdict(verdict: Verdict) -> str:
    notes = [
        f"Exploratory: {verdict.exploratory}." if verdict.exploratory else "",
        f"{verdict.power}." if verdict.power else "",
        f"{verdict.settles}." if verdict.settles else "",
    ]
    lines = [*verdict.lines(), *filter(None, notes)]
    rows = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    label = f"control: {format_outcome(verdict)}" if verdict.control else verdict.outcome
    kind = verdict.outcome.replace(" ", "-")
    if verdict.control:
        kind = "control" if verdict.is_as_expected else "control failed"
    return (
        f"<section class='verdict {kind}'>"
        f"<h3><span>{label}</span> {html.escape(verdict.claim)}</h3>"
        f"<ul>{rows}</ul>"
        f"<p><b>Rule, fixed beforehand:</b> {html.escape(verdict.rule)}</p></section>"
    )
