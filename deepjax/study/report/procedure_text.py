"""How the studies were tested: the end of the page of results."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deepjax.study.claim import FAMILY
from deepjax.study.report.markdown import escape, table
from deepjax.study.report.published import PublishedStudy
from deepjax.study.stats.intervals import PILOT_SEEDS

PROCEDURE = "procedure.json"
Studies = Mapping[str, PublishedStudy]

METHOD = f"""Rules, seeds and the family of headline claims were fixed before the judged runs; a
claim that changed afterwards is exploratory. The learning rate of every network was selected on
[pilots](pilots/README.md): {PILOT_SEEDS} other seeds, rates spaced by factors of 2, more of them
until the best one has a neighbour on either side. All networks of a study were then trained with
the same fresh seeds and compared seed by seed. A claim on networks is judged only if each of them
beats a linear classifier. Controls show whether the experiment can fail: a network compared with
itself under other seeds, and a planted defect that has to be found. The measured headline claims of
the lecture are corrected for their number, {FAMILY}. [Studies](../studies.md) explains each step;
[the audit](audit.md) of the first edition explains why it is done.
"""


def how_it_was_tested(results: Path, studies: Studies, gpu: Studies) -> list[str]:
    """The lines of the section. results: the folder that may have `PROCEDURE`."""
    return [
        "## How it was tested",
        "",
        METHOD,
        *_simulated(results),
        *_unstable({**studies, **{f"{name} on a GPU": study for name, study in gpu.items()}}),
        *_cost(studies, "On CPUs"),
        *_cost(gpu, "On GPUs"),
    ]


def _cost(studies: Studies, where: str) -> Iterable[str]:
    """Time in all and hardware."""
    if studies:
        seconds = sum(study.record["wall_seconds"] for study in studies.values())
        hardware = sorted({study.record["hardware"] for study in studies.values()})
        yield (
            f"{where}: {_count(studies)}, {seconds / 60:,.0f} minutes in all without the pilots, "
            f"on {escape('; '.join(hardware))}. Each report names its command and versions."
        )
        yield ""


def _count(studies: Studies) -> str:
    return "1 study" if len(studies) == 1 else f"{len(studies)} studies"


def _unstable(studies: Studies) -> Iterable[str]:
    """Verdicts that differ in the second run."""
    twice = [study for study in studies.values() if study.has_second]
    if not twice:
        return
    rows = [
        [name.replace("_", " "), escape(each.claim), each.outcome, each.second]
        for name, study in studies.items()
        for each in study.verdicts
        if each.is_unstable
    ]
    total = sum(len(study.verdicts) for study in twice)
    yield (
        f"{len(twice)} of {_count(studies)} ran a second time from scratch with "
        "other rounding ([how](../studies.md#rounding)). Of "
        f"{total} verdicts and controls {len(rows)} differ, and are unstable."
    )
    yield ""
    if rows:
        yield from table(("study", "claim or control", "first run", "second run"), rows)
        yield ""


def _simulated(results: Path) -> Iterable[str]:
    """False positives and power of the procedure, as far as they were simulated."""
    path = results / PROCEDURE
    if not path.exists():
        return
    found: Mapping[str, Any] = json.loads(path.read_text())
    kinds, limits = (_false_rates(found.get(key, {})) for key in ("false_positives", "limits"))
    if kinds:
        mixed = _rate(found.get("families_of_all_kinds"))
        yield (
            f"The procedure, pilots included, was simulated on {found.get('studies', '?')} "
            f"studies of each kind below, in which there is nothing to find ([{PROCEDURE}]"
            f"({PROCEDURE})). The first number is how often one claim gets a false verdict, the "
            f"second how often any of a family of {FAMILY} does"
            + (f"; in families of all kinds that is {mixed}." if mixed else ".")
        )
        yield ""
        yield from table(("nothing to find", "one claim", f"family of {FAMILY}"), kinds)
        yield ""
    if limits:
        yield "The limits of the procedure, a kind of study for which it promises less:"
        yield ""
        yield from table(("nothing to find", "one claim", f"family of {FAMILY}"), limits)
        yield ""
    yield from _power(found.get("power", {}))


def _false_rates(kinds: Mapping[str, Any]) -> list[list[str]]:
    """A row for each kind of study: false verdicts of one claim, and of a family."""
    return [
        [escape(name), _rate(each.get("alone")), _rate(each.get("family"))]
        for name, each in kinds.items()
    ]


def _power(power: Mapping[str, Any]) -> Iterable[str]:
    """A table: a row for each noise and number of seeds, a column for each effect."""
    effects = list(next(iter(power.values()), {}))
    if not effects:
        return
    yield (
        "The power for a headline claim after the strictest of Holm's corrections, by the standard "
        "deviation of an error over seeds, the correlation of both networks' errors under one "
        "seed, and the number of seeds:"
    )
    yield ""
    head = [f"{effect} point{'s' * (effect != '1')}" for effect in effects]
    rows = [
        [escape(name), *[_rate(by.get(effect, {}).get("headline"), 0) for effect in effects]]
        for name, by in power.items()
    ]
    yield from table(["noise and seeds", *head], rows)
    yield ""


def _rate(found: Mapping[str, float] | None, decimals: int = 1) -> str:
    """'4.2 %', or nothing where there is no rate."""
    return f"{100 * found['rate']:.{decimals}f} %" if found and "rate" in found else ""
