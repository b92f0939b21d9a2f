"""A study's page: one self-contained HTML file, verdicts first, with every number behind them."""

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

from deepjax.study.report.format import format_outcome
from deepjax.study.stats.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text with a caption."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A saved figure with its caption."""

    path: Path
    caption: str
    claim: str = ""
    """The beginning of the claim whose verdict is its title."""


@dataclasses.dataclass(frozen=True)
class Page:
    """The parts of the page, in their order."""

    title: str
    question: str
    verdicts: Sequence[Verdict]
    method: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    limits: Sequence[str]
    provenance: dict[str, str]


def render(page: Page) -> str:
    """The page as HTML text with embedded figures."""
    parts = [
        f"<h1>{html.escape(page.title)}</h1>",
        f"<p class=question>{html.escape(page.question)}</p>",
        *map(_verdict, page.verdicts),
        *map(_figure, page.figures),
        "<h2>What was done</h2>",
        *[f"<p>{html.escape(text)}</p>" for text in page.method],
        "<h2>The numbers</h2>",
        *map(_table, page.tables),
        "<h2>What this does not show</h2>",
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in page.limits) + "</ul>",
        "<h2>Run it again</h2>",
        "<dl>"
        + "".join(
            f"<dt>{k}</dt><dd><code>{html.escape(v)}</code></dd>"
            for k, v in page.provenance.items()
        )
        + "</dl>",
    ]
    return _FRAME.format(title=html.escape(page.title), style=_CSS, body="\n".join(parts))


def _verdict(verdict: Verdict) -> str:
    notes = [
        f"Exploratory: {verdict.exploratory}." if verdict.exploratory else "",
        f"{verdict.power}." if verdict.power else "",
        f"{verdict.settles}." if verdict.settles else "",
    ]
    lines = [*verdict.lines(), *filter(None, notes)]
    rows = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    label = f"control: {format_outcome(verdict)}" if verdict.control else verdict.outcome
    kind = "control" if verdict.control else verdict.outcome.replace(" ", "-")
    return (
        f"<section class='verdict {kind}'>"
        f"<h3><span>{label}</span> {html.escape(verdict.claim)}</h3>"
        f"<ul>{rows}</ul>"
        f"<p><b>Rule, fixed beforehand:</b> {html.escape(verdict.rule)}</p></section>"
    )


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.path.read_bytes()).decode()
    caption = html.escape(figure.caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_CSS = """
body {
  font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a;
}
h1 { line-height: 1.2; } .question { font-size: 1.15rem; color: #444; }
.verdict {
  border-left: 6px solid #888; padding: .3rem 1rem; margin: 1rem 0; background: #f7f7f7;
}
.verdict h3 { margin: .4rem 0; }
.verdict h3 span { text-transform: uppercase; font-size: .85rem; letter-spacing: .05em; }
.supported { border-color: #009E73; } .supported h3 span { color: #007a5a; }
.refuted { border-color: #D55E00; } .refuted h3 span { color: #b34f00; }
figure { margin: 1.5rem 0; } img { max-width: 100%; }
figcaption, caption { color: #444; text-align: left; font-size: .95rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; }
td, th {
  border-bottom: 1px solid #ddd; padding: .25rem .8rem .25rem 0; text-align: left;
  vertical-align: top;
}
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; } code { overflow-wrap: anywhere; }
"""

_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""
