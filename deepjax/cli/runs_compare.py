"""`deepjax runs compare RUN...`: options that differ, errors, and curves with their bands."""

import dataclasses
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from deepjax.analysis.plots import COLORS, Curve, error_curves, save
from deepjax.command_line import print_json
from deepjax.errors import InputError, require
from deepjax.paths import user_path
from deepjax.progress import say_on_stderr
from deepjax.storage.url import path_or_url
from deepjax.study.stats.intervals import LEVEL, mean_interval
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.config import options_of
from deepjax.training.run_directory.run_summary import RunSummary, summarize_run
from deepjax.training.run_directory.runs_below import runs_below

Group = list[RunSummary]
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare runs; those that differ in nothing but the seed form one group."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories, or folders with runs below them; averages of checkpoints are not compared.
    """
    figure: Path | None = None
    """New PNG file for the curves: mean over the seeds of a group, and the band between the
    extremes."""
    json: bool = False
    """Print JSON."""


def compare(options: Options) -> None:
    """Print the groups with their errors and differences; write the curves if asked for."""
    paths = [run for given in options.runs for run in runs_below(path_or_url(given, "runs"))]
    found = [summarize_run(local_run(run, "runs", False)) for run in dict.fromkeys(paths)]
    runs = [run for run in found if run.state != "average"]
    require(
        len(runs) > 1,
        "runs",
        ", ".join(paths),
        "two training runs or more, without averages",
    )
    groups = group_by_options(runs)
    rows = [_row(label, group) for label, group in groups.items()]
    differences = paired_differences(groups)
    if options.figure:
        title = finding(rows, differences)
        path = _write_curves(groups, title, user_path(options.figure, "figure"))
        say_on_stderr(f"curves in {path}")
    if options.json:
        print_json({"groups": rows, "differences": differences})
        return
    print(format_table(rows, differences))


def group_by_options(runs: Sequence[RunSummary]) -> dict[str, Group]:
    """Runs by the options in which they differ, such as "model=vgg11, epochs=5", without the seed.

    Two runs of the same seed in a group are refused with InputError: no interval over seeds can
    count both.
    """
    options = [options_of(run.config) | {"seed": 0} for run in runs]
    names = [name for name in options[0] if len({str(each[name]) for each in options}) > 1]
    groups: dict[str, Group] = {}
    for run, each in zip(runs, options, strict=True):
        label = ", ".join(f"{name}={each[name]}" for name in names) or "all runs"
        groups.setdefault(label, []).append(run)
    for label, group in groups.items():
        seeds = [run.config.seed for run in group]
        twice = next((run for run in group if seeds.count(run.config.seed) > 1), None)
        if twice:
            raise InputError(
                f"{twice.path} and another run have the same options and seed "
                f"({label}, seed {twice.config.seed}); give one of them"
            )
    return groups


def paired_differences(groups: Mapping[str, Group]) -> list[dict[str, Any]]:
    """Test errors of every other group less those of the first, in points, paired by seed.

    Only for groups that share two seeds or more of runs that are done.
    """
    (first, reference), *others = [(label, _test_errors(group)) for label, group in groups.items()]
    found = []
    for label, errors in others:
        seeds = sorted(errors.keys() & reference.keys())
        if len(seeds) < 2:
            continue
        interval = mean_interval([100 * (errors[seed] - reference[seed]) for seed in seeds])
        found.append(
            {
                "other": label,
                "first": first,
                "seeds": len(seeds),
                "mean": interval.effect,
                "interval": list(interval.bounds(LEVEL)),
            }
        )
    return found


def _test_errors(group: Group) -> dict[int, float]:
    """The final test errors by seed, of runs that are done."""
    found = {run.config.seed: run.last("test_error") for run in group if run.state == "done"}
    return {seed: error for seed, error in found.items() if error is not None}


def _row(label: str, group: Group) -> dict[str, Any]:
    done = [run for run in group if run.state == "done"]
    row: dict[str, Any] = {"label": label, "runs": [str(run.path) for run in group]}
    row["done"] = len(done)
    for entry in ("train_error", "test_error"):
        values = [100 * value for run in done if (value := run.last(entry)) is not None]
        row[entry] = statistics.fmean(values) if values else None
        row[f"{entry}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return row


def format_table(rows: Sequence[Row], differences: Sequence[Row]) -> str:
    """A line for each group, and below it the differences."""
    table = [("group", "runs", "train error", "test error")]
    for row in rows:
        count = f"{row['done']} of {len(row['runs'])} done"
        count = str(row["done"]) if row["done"] == len(row["runs"]) else count
        table.append((row["label"], count, _cell(row, "train_error"), _cell(row, "test_error")))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in table
    ]
    return "\n".join(
        [
            *lines,
            "Errors of the runs that are done: mean, and in parentheses the standard deviation "
            "over seeds.",
            *(
                f"{each['other']} less {each['first']}: {each['mean']:+.2f} points of test error, "
                f"{_interval(each)}, paired over {each['seeds']} seeds"
                for each in differences
            ),
        ]
    )


def _cell(row: Row, entry: str) -> str:
    if row[entry] is None:
        return "-"
    std = row[f"{entry}_std"]
    return f"{row[entry]:.2f} %" + (f" ({std:.2f})" if std is not None else "")


def _interval(difference: Row) -> str:
    low, high = difference["interval"]
    return f"95 % interval {low:+.2f} to {high:+.2f}"


def finding(rows: Sequence[Row], differences: Sequence[Row]) -> str:
    """What the comparison shows, in a sentence."""
    measured = [row for row in rows if row["test_error"] is not None]
    if not measured:
        return "No run is done yet"
    if len(rows) == 2 and differences:
        found = differences[0]
        (low, high), mean, seeds = found["interval"], found["mean"], found["seeds"]
        if low <= 0 <= high:
            return f"No difference in test error is shown ({_interval(found)}, {seeds} seeds)"
        more = "higher" if mean > 0 else "lower"
        low, high = sorted((abs(low), abs(high)))
        interval = f"95 % interval {low:.2f} to {high:.2f}, {seeds} seeds"
        return f"{found['other']}: test error {abs(mean):.2f} points {more} ({interval})"
    best = min(measured, key=lambda row: row["test_error"])
    seeds = f"{best['done']} seed{'s' if best['done'] > 1 else ''}"
    if len(rows) == 1:
        return f"Test error ends at {_cell(best, 'test_error')}, {seeds}"
    return f"Lowest mean test error: {best['label']}, {_cell(best, 'test_error')}, {seeds}"


def _write_curves(groups: Mapping[str, Group], title: str, path: Path) -> Path:
    """Two panels, test and training error: the mean over seeds, and the band between extremes."""
    require(path.suffix.lower() == ".png", "figure", str(path), "a file .png")
    require(not path.exists(), "figure", str(path), "a new file")
    panels, highest = [], 0.0
    for heading, entry in (("test error", "test_error"), ("training error", "running_error")):
        curves = []
        for i, (label, group) in enumerate(groups.items()):
            rows = [run.epochs for run in group]
            common = min(map(len, rows))
            if not common:
                raise InputError(f"{group[0].path} or a run of its group has no epoch yet")
            x = [row["epoch"] for row in rows[0][:common]]
            y = [[100 * row[entry] for row in each[:common]] for each in rows]
            highest = max(highest, *map(max, y))
            seeds = f" ({len(group)} seeds)" if len(group) > 1 else ""
            curves.append(Curve(f"{label}{seeds}", x, y, COLORS[i % len(COLORS)]))
        panels.append((heading, curves))
    figure = error_curves(panels, "epoch; band: range over seeds")
    figure.suptitle("\n".join(textwrap.wrap(title, 90)))
    for axes in figure.axes:
        axes.set_ylim(0, min(100.0, 1.05 * highest))
    try:
        return save(figure, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose another --figure"
        ) from error
