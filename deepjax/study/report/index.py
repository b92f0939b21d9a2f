"""The page of all studies, docs/results/README.md, from their result.json files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.training.config import write_text

Record = Mapping[str, Any]  # a result.json

INTRODUCTION = """# Deep Into Deep, measured

Every claim of the lecture, put to the test: a rule fixed beforehand, several seeds, an interval,
and a control that must come out the other way. A verdict is *supported*, *refuted* or
*inconclusive*; all three are results. `make studies` runs everything below on the digits and
writes this page; `python experiments/NAME.py --dataset fashion_mnist` runs one study on another
data set.

Intervals are Student's or Welch's at 95 %, over seeds. A claim of several parts is supported only
if each part is, so no correction is due inside a claim. Across the {claims} claims of this page
none is made: of claims without anything in them about one in forty would be called supported by
chance.
"""


def write_page(results: Path, order: Sequence[str], datasets: Sequence[str]) -> Path:
    """Write results/README.md from results/NAME-DATASET/result.json and the remarks in NAME.md.

    It lists the studies without a result.
    """
    found = {
        (name, dataset): record
        for name in order
        for dataset in datasets
        if (record := _read(results, name, dataset))
    }
    claims = sum(
        not verdict["control"] for record in found.values() for verdict in record["verdicts"]
    )
    parts = [INTRODUCTION.format(claims=claims), _summary(found, order, datasets)]
    for name in order:
        records = {
            dataset: found[name, dataset] for dataset in datasets if (name, dataset) in found
        }
        if records:
            parts.append(_section(name, records, results))
    path = results / "README.md"
    write_text(path, "\n".join(parts))
    return path


def _read(results: Path, name: str, dataset: str) -> Record | None:
    path = results / f"{name}-{dataset}" / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def _summary(
    found: Mapping[tuple[str, str], Record], order: Sequence[str], datasets: Sequence[str]
) -> str:
    """A table: a row for each claim, a column for each data set."""
    rows = [["claim", *datasets], ["---"] * (1 + len(datasets))]
    for name in order:
        outcomes: dict[str, dict[str, str]] = {}
        for dataset in datasets:
            for verdict in found.get((name, dataset), {}).get("verdicts", []):
                if not verdict["control"]:
                    outcomes.setdefault(verdict["claim"], {})[dataset] = (
                        f"[{verdict['outcome']}](#{name.replace('_', '-')})"
                    )
        rows += [
            [claim, *[by.get(dataset, "not run") for dataset in datasets]]
            for claim, by in outcomes.items()
        ]
    missing = [name for name in order if not any((name, dataset) in found for dataset in datasets)]
    left = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    return (
        "\n".join("| " + " | ".join(_cell(text) for text in row) + " |" for row in rows)
        + "\n"
        + left
    )


def _section(name: str, records: Mapping[str, Record], results: Path) -> str:
    first = next(iter(records.values()))
    lines = [
        f"## {name.replace('_', ' ')}",
        "",
        f"*The lecture: {first['lecture']}.*",
        "",
        f"**{first['title']}**",
        "",
    ]
    for dataset, record in records.items():
        lines += [f"### {name.replace('_', ' ')} on {dataset}", "", *_verdicts(record), ""]
        folder = f"{name}-{dataset}"
        for figure in record.get("figures", []):
            lines += [
                f"![{_cell(figure['caption'])}]({folder}/{figure['file']})",
                "",
                figure["caption"],
                "",
            ]
        lines += [_origin(record, folder), ""]
    remarks = results / f"{name}.md"
    if remarks.exists():
        lines += [remarks.read_text().strip(), ""]
    return "\n".join(lines)


def _verdicts(record: Record) -> Iterable[str]:
    yield "| | claim | found |"
    yield "|---|---|---|"
    for verdict in record["verdicts"]:
        label = f"**{verdict['outcome']}**" if not verdict["control"] else _control(verdict)
        claim = f"{_cell(verdict['claim'])} *{_cell(verdict['rule'])}*"
        yield f"| {label} | {claim} | {'<br>'.join(map(_cell, verdict['findings']))} |"


def _control(verdict: Mapping[str, Any]) -> str:
    must = " or ".join(verdict["control"])
    if verdict["outcome"] in verdict["control"]:
        return f"control: {verdict['outcome']}, as it must be"
    return f"**control failed**: {verdict['outcome']}, must be {must}"


def _origin(record: Record, folder: str) -> str:
    seeds, time, hardware = record["seeds"], record["wall time"], record["hardware"]
    return (
        f"`{record['command']}` - {seeds} seeds, {time}, {hardware}. "
        f"Expected: {record['expected']}. [All numbers]({folder}/result.json)"
    )


def _cell(text: str) -> str:
    """Text escaped for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
