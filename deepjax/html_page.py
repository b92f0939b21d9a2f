"""Self-contained HTML pages: embedded figures that enlarge, tables, light and dark, for print."""

import base64
import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

LONG_CELL = 40  # characters; such columns stay wide enough to read on a phone


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


def page_html(title: str, parts: Sequence[str]) -> str:
    """A page of parts, which are HTML, as one file without links to others."""
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    body = body.replace("<figure>", f"{_HINT}\n<figure>", 1)
    return _FRAME.format(title=html.escape(title), style=_CSS, body=body, script=_SCRIPT)


def figure_html(figure: Figure) -> str:
    """A figure with its caption; a click, a tap or the Enter key enlarges it."""
    data = base64.b64encode(figure.path.read_bytes()).decode()
    caption = html.escape(figure.caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure><button>{image}</button><figcaption>{caption}</figcaption></figure>"


def table_html(table: Table) -> str:
    """A table, which scrolls where the window is narrower; numbers are aligned at the right."""
    caption = html.escape(table.caption)
    if not table.rows:
        return f"<p class=caption>{caption}</p>"
    _labels, *columns = zip(*table.rows, strict=True)
    kinds = ["", *map(_column_class, columns)]
    head = _row_html("th", table.header, kinds)
    body = "".join(_row_html("td", row, kinds) for row in table.rows)
    rows = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return (
        f"<p class=caption>{caption}</p>"
        f'<div class=scroll role=region tabindex=0 aria-label="{caption}">{rows}</div>'
    )


def details_html(summary: str, text: str) -> str:
    """Preformatted text that a click shows."""
    return (
        f"<details><summary>{html.escape(summary)}</summary>"
        f"<pre>{html.escape(text)}</pre></details>"
    )


def _row_html(tag: str, cells: Sequence[str], kinds: Sequence[str]) -> str:
    pairs = zip(cells, kinds, strict=True)
    return (
        f"<tr>{''.join(f'<{tag}{kind}>{html.escape(cell)}</{tag}>' for cell, kind in pairs)}</tr>"
    )


def _column_class(cells: Sequence[str]) -> str:
    if all(re.fullmatch(r"[-+]?\d[\d.,]*( %)?", cell) for cell in cells):
        return " class=number"
    return " class=long" if max(map(len, cells)) > LONG_CELL else ""


def definitions_html(values: Mapping[str, str]) -> str:
    """Names with their values, such as a command and the versions it ran with."""
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(value)}</code></dd>"
        for name, value in values.items()
    )
    return f"<dl>{rows}</dl>"


_CSS = """
:root { --text: #1a1a1a; --soft: #444; --card: #f7f7f7; --line: #ddd; --page: #fff;
  --good: #007a5a; --bad: #b34f00; }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --text: #e6e6e6;
  --soft: #b5b5b5; --card: #24262a; --line: #3d4046; --page: #17181b; --good: #4fc9a4;
  --bad: #ff9d5c; } }
body {
  font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page);
}
body > * { max-width: 58rem; } body > figure { max-width: none; }
h1, h2 { line-height: 1.2; break-after: avoid; }
.question { font-size: 1.15rem; color: var(--soft); }
.verdict {
  border: 0 solid #888; border-left-width: 6px; padding: .3rem 1rem; margin: 1rem 0;
  background: var(--card);
  box-sizing: border-box; break-inside: avoid;
}
.verdict h3 { margin: .4rem 0; } .verdict ul { padding-left: 1.2rem; }
.verdict h3 span { text-transform: uppercase; font-size: .85rem; letter-spacing: .05em; }
.supported { border-color: #009E73; } .supported h3 span { color: var(--good); }
.refuted, .failed { border-color: #D55E00; }
.refuted h3 span, .failed h3 span { color: var(--bad); } .failed { border-width: 3px 3px 3px 12px; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure button { display: block; padding: 0; border: 0; background: none; cursor: zoom-in; }
figure img { display: block; max-width: 100%; max-height: 85vh; background: #fff; }
dialog { max-width: 100vw; max-height: 100vh; padding: 0; border: 0; overflow: auto; }
dialog img { display: block; max-width: max(96vw, 60rem); cursor: zoom-out; background: #fff; }
dialog::backdrop { background: rgb(0 0 0 / .8); }
figcaption { margin-top: .4rem; }
figcaption, .caption, .hint { color: var(--soft); font-size: .95rem; max-width: 58rem; }
.caption { margin: 1.5rem 0 .4rem; break-after: avoid; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
tr { break-inside: avoid; }
td, th {
  border-bottom: 1px solid var(--line); padding: .25rem 1.2rem .25rem 0; text-align: left;
  vertical-align: top;
}
.number { text-align: right; white-space: nowrap; } .long { min-width: 14rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
code { overflow-wrap: anywhere; } pre { overflow-x: auto; font-size: .85rem; }
@media print {
  body { font-size: 10.5pt; margin: 0; max-width: none; } .hint, details { display: none; }
  figure img { max-height: 10cm; } .scroll { overflow: visible; } .long { min-width: 0; }
}
"""

_HINT = "<p class=hint>A click or a tap enlarges a figure.</p>"

_SCRIPT = """
const view = document.createElement("dialog"), large = document.createElement("img");
view.append(large); document.body.append(view);
view.addEventListener("click", () => view.close());
for (const button of document.querySelectorAll("figure button")) {
  button.addEventListener("click", () => {
    const image = button.firstElementChild;
    large.src = image.src; large.alt = image.alt; view.showModal();
  });
}
"""

_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
<script>{script}</script>
</body></html>
"""
