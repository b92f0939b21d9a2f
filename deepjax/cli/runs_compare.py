"""`deepjax runs compare RUN...`: options that differ, errors, and curves with their bands."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from deepjax.analysis.plots import COLORS, Curve, error_curves, save
from deepjax.command_line import print_json
from deepjax.errors import InputError, require
from deepjax.paths import user_path
from deepjax.progress import say_on_stderr
from deepjax.study.stats.intervals import LEVEL, mean_interval
from deepjax.training.config import options_of
from deepjax.training.run_directory.run_summary import RunSummary, require_runs, summarize_run

Group = list[RunSummary]


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
    paths = [path for given in options.runs for path in require_runs(user_path(given, "runs"))]
    found = [summarize_run(path) for path in dict.fromkeys(paths)]
    runs = [run for run in found if run.state != "average"]
    require(
        len(runs) > 1,
        "runs",
        ", ".join(map(str, paths)),
        "two training runs or more, without averages",
    )
    groups = group_by_options(runs)
    rows = [_row(label, group) for label, group in groups.items()]
    differences = paired_differences(groups)
    if options.figure:
        path = _write_curves(groups, user_path(options.figure, "figure"))
        say_on_stderr(f"curves in {path}")
    if options.json:
        print_json({"groups": rows, "differences": differences})
        return
    for row in rows:
        print(f"{row['label']}: {_errors(row)}")
    for found in differences:
        low, high = found["interval"]
        print(
            f"{found['other']} less {found['first']}: {found['mean']:+.2f} points of test error, "
            f"95 % interval {low:+.2f} to {high:+.2f}, paired over {found['seeds']} seeds"
        )


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


def _errors(row: Mapping[str, Any]) -> str:
    count, total = row["done"], len(row["runs"])
    runs = f"{total} run{'s' if total > 1 else ''}"
    if not count:
        return f"{runs}, none is done"
    counted = runs if count == total else f"{count} of {runs} done"
    return f"{counted}; train error {_of(row, 'train_error')}, test error {_of(row, 'test_error')}"


def _of(row: Mapping[str, Any], entry: str) -> str:
    std = row[f"{entry}_std"]
    return f"{row[entry]:.2f} %" + (f" (standard deviation {std:.2f})" if std is not None else "")


def _write_curves(groups: Mapping[str, Group], path: Path) -> Path:
    require(path.suffix.lower() == ".png", "figure", str(path), "a file .png")
    require(not path.exists(), "figure", str(path), "a new file")
    curves = []
    for i, (label, group) in enumerate(groups.items()):
        color = COLORS[i % len(COLORS)]
        rows = [run.epochs for run in group]
        common = min(map(len, rows))
        if not common:
            raise InputError(f"{group[0].path} or a run of its group has no epoch yet")
        x = [row["epoch"] for row in rows[0][:common]]
        # A label that begins with "_" is not in the legend.
        for name, entry, line in ((f"_{label}", "running_error", "--"), (label, "test_error", "-")):
            y = [[100 * row[entry] for row in each[:common]] for each in rows]
            curves.append(Curve(name, x, y, color, line))
    title = "Test error, training error dashed; range over seeds"
    try:
        return save(error_curves([(title, curves)], "epoch"), path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose another --figure"
        ) from error
