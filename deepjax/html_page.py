"""Self-contained HTML pages: embedded figures that enlarge, tables, light and dark, for print."""

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path


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
    return _FRAME.format(title=html.escape(title), style=_CSS, body=body, script=_SCRIPT)


def figure_html(figure: Figure) -> str:
    """A figure with its caption; a click or a tap enlarges it."""
    data = base64.b64encode(figure.path.read_bytes()).decode()
    caption = html.escape(figure.caption)
    image = f'<img alt="{caption}" tabindex=0 src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def table_html(table: Table) -> str:
    """A table, which scrolls where the window is narrower."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>"
    rows = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=scroll>{rows}</div>"


def definitions_html(values: Mapping[str, str]) -> str:
    """Names with their values, such as a command and the versions it ran with."""
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(value)}</code></dd>"
        for name, value in values.items()
    )
    return f"<dl>{rows}</dl>"


_CSS = """
:root { color-scheme: light dark; --text: #1a1a1a; --soft: #444; --card: #f7f7f7; --line: #ddd;
  --page: #fff; --good: #007a5a; --bad: #b34f00; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --soft: #b5b5b5; --card: #24262a;
  --line: #3d4046; --page: #17181b; --good: #4fc9a4; --bad: #ff9d5c; } }
body {
  font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page);
}
h1 { line-height: 1.2; } .question { font-size: 1.15rem; color: var(--soft); }
.verdict {
  border-left: 6px solid #888; padding: .3rem 1rem; margin: 1rem 0; background: var(--card);
}
.verdict h3 { margin: .4rem 0; }
.verdict h3 span { text-transform: uppercase; font-size: .85rem; letter-spacing: .05em; }
.supported { border-color: #009E73; } .supported h3 span { color: var(--good); }
.refuted { border-color: #D55E00; } .refuted h3 span { color: var(--bad); }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; background: #fff; cursor: zoom-in; }
dialog { max-width: 100vw; max-height: 100vh; padding: 0; border: 0; overflow: auto; }
dialog img { display: block; min-width: 60rem; cursor: zoom-out; background: #fff; }
dialog::backdrop { background: rgb(0 0 0 / .8); }
figcaption, caption { color: var(--soft); text-align: left; font-size: .95rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; }
td, th {
  border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left;
  vertical-align: top;
}
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; } code { overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; } .scroll { overflow: visible; } }
"""

_SCRIPT = """
const view = document.createElement("dialog"), large = document.createElement("img");
view.append(large); document.body.append(view);
view.addEventListener("click", () => view.close());
for (const image of document.querySelectorAll("figure img")) {
  const open = () => { large.src = image.src; large.alt = image.alt; view.showModal(); };
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
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
