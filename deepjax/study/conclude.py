"""From the results of a study to verdicts, figures, result.json and report.html."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from deepjax.data import dataset_info
from deepjax.study.report.format import arm_values, format_outcome
from deepjax.study.report.html import Figure, Page, render
from deepjax.study.report.metrics import final_error_table, sweep_table
from deepjax.study.report.provenance import provenance
from deepjax.study.stats.verdict import Verdict
from deepjax.study.study import Study, StudyResults
from deepjax.training.run_directory.config_file import write_text


def conclude(study: Study, results: StudyResults, out: Path, seconds: float) -> StudyResults:
    """Judge and draw; write result.json, the figures and report.html. Returns the judged results.

    seconds: the wall time to report.
    """
    import jax

    results = dataclasses.replace(results, verdicts=study.judge(results))
    figures = study.draw(results, out)
    origin = provenance(seconds, f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    record = _record(study, results, figures) | {"wall_seconds": seconds} | origin
    write_text(out / "result.json", json.dumps(record, indent=2) + "\n")
    write_text(out / "report.html", render(_page(study, results, figures, origin)))
    return results


def _record(study: Study, results: StudyResults, figures: Sequence[Figure]) -> dict[str, object]:
    return {
        "study": study.name,
        "lecture": study.lecture,
        "title": study.title,
        "dataset": results.options.dataset,
        "seeds": results.preset.seeds,
        "expected": results.preset.expected,
        "verdicts": [verdict.as_dict() for verdict in results.verdicts],
        "figures": [{"file": figure.path.name, "caption": figure.caption} for figure in figures],
        "arms": arm_values(results.arms),
    }


def _page(
    study: Study, results: StudyResults, figures: Sequence[Figure], origin: dict[str, str]
) -> Page:
    expected = f"Expected beforehand: {results.preset.expected}."
    tables = study.tables(results)
    if results.arms:
        sweep = sweep_table(results.arms, results.preset.rates)
        tables = [*tables, final_error_table(results.arms), sweep]
    return Page(
        title=study.title,
        question=study.question,
        verdicts=results.verdicts,
        method=[*study.method(results), _describe_data(results), expected],
        figures=figures,
        tables=tables,
        limits=study.limits(results),
        provenance=origin,
    )


def _describe_data(results: StudyResults) -> str:
    dataset, preset = dataset_info(results.options.dataset), results.preset
    shape = "x".join(map(str, dataset.shape[:2]))
    images = f"{dataset.train_size:,} training and {dataset.test_size:,} test images"
    text = f"Data: {dataset.name} ({dataset.source}), {images} of {shape} pixels."
    text += f" {preset.seeds} seeds."
    if preset.training:
        training = ", ".join(f"{name} {value}" for name, value in preset.training.items())
        rates = ", ".join(f"{rate:g}" for rate in preset.rates)
        text += f" Training: {training}; rates tried on the first seed: {rates}."
    return text


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Each verdict with its findings, on stdout."""
    for verdict in verdicts:
        print(f"{'control' if verdict.control else verdict.outcome.upper():13} {verdict.claim}")
        outcome = [format_outcome(verdict)] if verdict.control else []
        for finding in [*outcome, *verdict.findings]:
            print(f"{'':13} - {finding}")
