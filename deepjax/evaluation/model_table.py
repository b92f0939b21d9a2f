"""The table of many evaluated networks: which are meant, one row for each, its files.

table.json is the table; table.csv and table.md are written from it. All three are replaced
atomically after every network, so a killed evaluation loses only the network that it was at.
"""

import csv
import dataclasses
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.errors import InputError, describe_error
from deepjax.io import write_text

TABLE_FILES = ("table.json", "table.csv", "table.md")
SPEED = (
    "images/s: over the evaluation of a network from its second batch on, so without compilation; "
    "reading and decoding of images, their transfer and the network are included, in steps of "
    "--batch-size. Up to three of the batches were read during compilation."
)


@dataclasses.dataclass(frozen=True)
class TableRow:
    """The result of a network with certain weights, or its error."""

    model: str
    weights: str
    revision: str
    """As that of `Candidate`."""
    error: str = ""
    """Why there is no result, in one line."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """As in result.json."""
    images_per_second: float | None = None
    params: int = 0
    macs: int = 0
    """Multiply-adds for one crop."""
    crop: str = ""
    resize: int = 0
    interpolation: str = ""
    ema: bool = False
    """Whether the weights are a run's exponential moving averages."""
    assumed: str = ""
    """Preprocessing that is not known for the weights."""
    batch_size: int = 0
    hardware: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What distinguishes a row from the others."""
        return self.model, self.weights, self.revision


class ImageRate:
    """Images per second, from the first batch that was dispatched, which follows compilation."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def update(self, done: int) -> None:
        """Note the images dispatched so far."""
        self._first = self._first or (time.monotonic(), done)

    def images_per_second(self, images: int) -> float | None:
        """The rate when the last of `images` has been computed; None for a single batch."""
        if self._first is None or images <= self._first[1]:
            return None
        began, done = self._first
        return (images - done) / (time.monotonic() - began)


def open_table(out: Path, about: Mapping[str, Any]) -> list[TableRow]:
    """The rows of a table that was begun; empty for a new one.

    Raises InputError for the table of another evaluation, naming the differences, for a corrupt
    one, and for another file of that name.
    """
    path = out / TABLE_FILES[0]
    if not path.exists():
        for name in TABLE_FILES[1:]:
            if (out / name).exists():
                raise InputError(
                    f"{out / name} exists without {path.name}; choose another --output-dir, or "
                    "remove it"
                )
        return []
    try:
        stored = json.loads(path.read_text())
        there, rows = dict(stored["about"]), [TableRow(**row) for row in stored["rows"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is corrupt ({describe_error(error)}); choose another --output-dir, or remove "
            "it"
        ) from error
    mine = json.loads(json.dumps(about))
    changed = [
        f"{name} is {mine.get(name)!r}, there {there.get(name)!r}"
        for name in sorted({*mine, *there})
        if mine.get(name) != there.get(name)
    ]
    if changed:
        raise InputError(
            f"{path} is the table of another evaluation: {'; '.join(changed)}; choose another "
            "--output-dir, or remove it"
        )
    return rows


def write_table(
    out: Path, about: Mapping[str, Any], rows: Sequence[TableRow], provenance: Mapping[str, Any]
) -> None:
    """Replace the three files. about: what distinguishes the evaluation from another.

    provenance: command, versions and the like of the last start.
    """
    table = {"about": about, "rows": [dataclasses.asdict(row) for row in rows], **provenance}
    texts = (json.dumps(table, indent=2, ensure_ascii=False) + "\n", _csv(rows), _text(about, rows))
    for name, text in zip(TABLE_FILES, texts, strict=True):
        write_text(out / name, text)


def format_row(row: TableRow) -> str:
    """A row as a line to print."""
    named = f"{row.model} ({_described(row)})"
    if row.error:
        return f"{named}: FAILED: {row.error}"
    cells = _cells(row)
    top5 = f", top-5 {cells['top5']} %" if cells["top5"] else ""
    speed = f", {cells['images_per_second']} images/s" if cells["images_per_second"] else ""
    assumed = f"; {row.assumed}" if row.assumed else ""
    return f"{named}: top-1 {cells['top1']} %{top5}, ECE {cells['ece']} %{speed}{assumed}"


def _described(row: TableRow) -> str:
    """The weights in words."""
    return ", ".join(filter(None, (row.weights, row.revision, "averages" if row.ema else "")))


def _cells(row: TableRow) -> dict[str, Any]:
    """The cells of table.csv by column; empty where there is no number."""
    found = row.metrics
    top5, ece, rate = found.get("top5_error"), found.get("ece"), row.images_per_second
    return {
        "model": row.model,
        "top1": "" if row.error else f"{100 * (1 - found['top1_error']):.3f}",
        "top5": "" if top5 is None else f"{100 * (1 - top5):.3f}",
        "ece": "" if ece is None else f"{100 * ece:.3f}",
        "images": found.get("counted", ""),
        "not_finite": found.get("not_finite", ""),
        "images_per_second": "" if rate is None else f"{rate:.1f}",
        "params": row.params or "",
        "macs": row.macs or "",
        "crop": row.crop,
        "resize": row.resize or "",
        "interpolation": row.interpolation,
        "weights": row.weights,
        "revision": row.revision,
        "ema": row.ema,
        "batch_size": row.batch_size or "",
        "hardware": row.hardware,
        "assumed": row.assumed,
        "error": row.error,
    }


def _sorted(rows: Sequence[TableRow]) -> list[TableRow]:
    """The best first, those without a result last."""
    return sorted(
        rows, key=lambda row: (bool(row.error), row.metrics.get("top1_error", 1), *row.key)
    )


def _csv(rows: Sequence[TableRow]) -> str:
    text = io.StringIO()
    columns = [*_cells(TableRow("", "", "", "none"))]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_cells, _sorted(rows)))
    return text.getvalue()


def _text(about: Mapping[str, Any], rows: Sequence[TableRow]) -> str:
    """table.md."""
    good = [row for row in _sorted(rows) if not row.error]
    heads = {
        "model": "model",
        "top1": "top-1",
        "top5": "top-5",
        "ece": "ECE",
        "images_per_second": "images/s",
        "params": "parameters",
        "macs": "multiply-adds",
        "crop": "crop",
    }
    lines = [
        f"# {about['dataset']}: {len(good)} networks",
        "",
        f"{about['images']:,} images, `{about['protocol']}`; accuracy and expected calibration "
        "error in per cent; multiply-adds are for one crop.",
        "",
        SPEED,
        "",
        _line([*heads.values(), "weights"]),
        _line(["---", *["---:"] * (len(heads) - 1), "---"]),
    ]
    for row in good:
        cells = _cells(row)
        numbers = {name: f"{cells[name]:,}" for name in ("params", "macs") if cells[name] != ""}
        shown = [numbers.get(name, str(cells[name])) for name in heads]
        lines.append(_line([*shown, _described(row)]))
    notes = [f"- {row.model}, {row.weights}: {row.assumed}" for row in good if row.assumed]
    failed = [f"- {row.model}, {row.weights}: {row.error}" for row in rows if row.error]
    nan = [
        f"- {row.model}, {row.weights}: NOT FINITE: {row.metrics['not_finite']} images"
        for row in good
        if row.metrics["not_finite"]
    ]
    for title, items in (("Assumed", notes), ("Not finite", nan), ("Failed", failed)):
        lines += ["", f"## {title}", "", *items] if items else []
    steps = sorted({f"{row.hardware}, --batch-size {row.batch_size}" for row in good})
    return "\n".join([*lines, "", f"Hardware: {'; '.join(steps) or 'none'}."]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
