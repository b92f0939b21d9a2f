"""From the results of a study to verdicts, figures, result.json and report.html."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from deepjax.analysis.plots import save
from deepjax.html_page import Figure
from deepjax.io import write_text
from deepjax.provenance import provenance
from deepjax.study.claim import CHANGED, judge_claims
from deepjax.study.preregistration import changed_claims
from deepjax.study.report.format import arm_values, format_outcome
from deepjax.study.report.html import Page, render
from deepjax.study.report.metrics import final_error_table
from deepjax.study.report.protocol import protocol
from deepjax.study.report.study_figures import figure_title
from deepjax.study.results import StudyResults
from deepjax.study.stats.verdict import Verdict
from deepjax.study.study import Study


def conclude(
    study: Study,
    preset_name: str,
    results: StudyResults,
    out: Path,
    seconds: float,
    hardware: str = "",
) -> StudyResults:
    """Judge and draw; write result.json, the figures and report.html. Returns the judged results.

    seconds: the wall time to report. hardware: as for `study_provenance`.
    """
    if results.preset.judged:
        results = dataclasses.replace(results, verdicts=_judged(study, results, out))
    figures = _draw(study, results, out)
    origin = study_provenance(seconds, hardware)
    record = _record(study, preset_name, results, figures) | {"wall_seconds": seconds} | origin
    write_text(out / "result.json", json.dumps(record, indent=1) + "\n")
    write_text(out / "report.html", render(_page(study, results, figures, origin)))
    return results


def study_provenance(seconds: float, hardware: str = "") -> dict[str, str]:
    """How the results were made. hardware: that of other machines; "": the devices of this one."""
    if hardware:
        return provenance(seconds, "") | {"hardware": hardware}
    import jax

    return provenance(seconds, f"{jax.device_count()} x {jax.devices()[0].device_kind}")


def _judged(study: Study, results: StudyResults, out: Path) -> list[Verdict]:
    """The verdicts; a claim that was changed since the rules were recorded is exploratory."""
    changed = changed_claims(study, results.preset, out)
    return [
        dataclasses.replace(verdict, exploratory=CHANGED) if verdict.claim in changed else verdict
        for verdict in judge_claims(study.claims, results)
    ]


def _draw(study: Study, results: StudyResults, out: Path) -> list[Figure]:
    """Draw and save the declared figures whose arms there are."""
    figures = []
    for declared in study.figures:
        figure = declared.draw(results, figure_title(declared, results))
        if figure is not None:
            path = save(figure, out / f"{declared.name}.png")
            plt.close(figure)
            figures.append(Figure(path, declared.caption, declared.claim))
    return figures


def _record(
    study: Study, preset_name: str, results: StudyResults, figures: Sequence[Figure]
) -> dict[str, object]:
    return {
        "study": study.name,
        "preset": preset_name,
        "title": study.title,
        "lecture": study.lecture,
        "beyond": study.beyond,
        "method": study.method,
        "limits": study.limits,
        "protocol": protocol(results),
        "seeds": list(results.seeds),
        "verdicts": [verdict.as_dict() for verdict in results.verdicts],
        "figures": [
            {"file": figure.path.name, "caption": figure.caption, "claim": figure.claim}
            for figure in figures
        ],
        "tables": [dataclasses.asdict(make(results)) for make in study.tables],
        "arms": arm_values(results.arms),
    }


def _page(
    study: Study, results: StudyResults, figures: Sequence[Figure], origin: dict[str, str]
) -> Page:
    tables = [make(results) for make in study.tables]
    if results.arms:
        tables = [*tables, final_error_table(results.arms)]
    return Page(
        title=study.title,
        question=study.lecture,
        verdicts=results.verdicts,
        method=[study.method, protocol(results)],
        figures=figures,
        tables=tables,
        limits=[study.limits],
        provenance=origin,
    )


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Each verdict with its findings, on stdout."""
    for verdict in verdicts:
        print(f"{'control' if verdict.control else verdict.outcome.upper():13} {verdict.claim}")
        outcome = [format_outcome(verdict)] if verdict.control else []
        notes = [f"exploratory: {verdict.exploratory}"] if verdict.exploratory else []
        for finding in [*outcome, *verdict.lines(), *notes, *filter(None, [verdict.settles])]:
            print(f"{'':13} - {finding}")
    if not verdicts:
        print(
            "This preset gives no verdicts: too few seeds on too few images. --preset small does."
        )
