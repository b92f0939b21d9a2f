"""docs/results/pilots/README.md: the rates that pilots selected, and the power they promise."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.io import write_text
from deepjax.study.report.markdown import escape, table
from deepjax.study.stats.intervals import PILOT_SEEDS
from deepjax.study.stats.power import ENOUGH

TITLE = f"""# Pilots

The learning rate of every network is selected on pilots: runs with {PILOT_SEEDS} seeds that are
never judged. The rates are spaced by factors of 2, and more are tried until the best one has a
neighbour on either side. The best rate has the lowest mean error: in studies of optimisation on
training images, in studies of accuracy on the last eighth of the training images, which their
pilots hold out. `make studies-pilots` repeats these pilots; the selected rates are stored in the
package, so that `make studies` does not.

A cell has the mean training and test error in per cent, or training error and that on images held
out; the selected rate is bold. "Left open" is the standard deviation, in points, of either error
that comes from choosing the rate on few seeds; the intervals of errors contain it.

At its selected rates the complete study is then run on the pilots' seeds, measurements included.
Power is the chance to find the smallest effect of interest with the seeds of the judged runs, after
the strictest of Holm's corrections for a headline claim, as the spread of these runs promises it.
The unit of the effect is that of the claim, points for errors. A claim with less than {ENOUGH:.0%}
is declared exploratory.
"""


_SELECTED = {
    "train": "selected by the training error",
    "validation": "selected by the error on images held out",
}


def write_pilots_page(folder: Path) -> Path:
    """Write README.md from the records of pilots, NAME-PRESET.json, in a folder."""
    lines = [TITLE]
    paths = sorted(folder.glob("*.json"))
    if not paths:
        lines.append("No pilots are published yet.")
    for path in paths:
        lines += _pilots(json.loads(path.read_text()), path.name)
    page = folder / "README.md"
    write_text(page, "\n".join(lines).rstrip() + "\n")
    return page


def _pilots(record: Mapping[str, Any], file: str) -> Iterable[str]:
    name = record["study"].replace("_", " ")
    yield from (f"## {name.capitalize()}, preset {record['preset']}", "")
    yield (
        f"{record['pilot_seeds']} seeds on {escape(record['dataset'])}, "
        f"{_SELECTED[record['select']]}, "
        f"{record['wall_seconds'] / 60:,.0f} minutes, {escape(record['hardware'])}. "
        f"[Every error]({file})"
    )
    yield ""
    arms = record["arms"]
    if arms:
        yield from _rates(arms)
    power = record.get("power", {})
    if power:
        yield from table(
            ("claim", "smallest effect of interest", "power"),
            [
                [escape(claim), f"{found['interest']:g}", _power(found["power"])]
                for claim, found in power.items()
            ],
        )
        yield ""


def _rates(arms: Mapping[str, Any]) -> Iterable[str]:
    rates = sorted({rate for arm in arms.values() for rate in arm["errors"]["train"]}, key=float)
    rows = [
        [
            escape(arm.replace("_", " ")),
            *[_cell(found, rate) for rate in rates],
            " / ".join(f"{100 * found['selection'][each]:.2f}" for each in ("train", "test")),
        ]
        for arm, found in arms.items()
    ]
    yield from table(["network", *rates, "left open"], rows)
    yield ""


def _cell(arm: Mapping[str, Any], rate: str) -> str:
    """Mean errors at a rate; bold if it is the selected one; empty if it was not tried."""
    if rate not in arm["errors"]["train"]:
        return ""
    means = (100 * float(np.mean(arm["errors"][each][rate])) for each in ("train", "test"))
    text = " / ".join(f"{mean:.1f}" for mean in means)
    return f"**{text}**" if float(rate) == float(f"{arm['rate']:g}") else text


def _power(power: float) -> str:
    return f"{100 * power:.0f} %" + ("" if power >= ENOUGH else ", too little")
