"""Look at training runs: which there are, how far they are, and whether their files are intact.

    deepjax runs list                        # all below runs/, with state and errors
    deepjax runs show runs/resnet20          # configuration, epochs, checkpoints
    deepjax runs watch runs/resnet20         # until the run ends
    deepjax runs compare runs/a runs/b       # options that differ, errors, curves over seeds
    deepjax runs verify runs/resnet20        # hash every file, read every array
    deepjax runs digest runs/resnet20        # one sha256 over the training state
    deepjax runs diff runs/a runs/b          # differences of two states, leaf by leaf

RUN is the --output-dir of a training run: a folder, or a URL such as gs://bucket/run. All but
`watch` take --json.
"""

import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from deepjax.cli import runs_compare, runs_watch
from deepjax.command_line import parse, print_json, run_action
from deepjax.errors import InputError
from deepjax.help_page import action_page
from deepjax.storage.url import path_or_url
from deepjax.training.checkpoint.inspect import differences, digest, read_contents, steps_of
from deepjax.training.checkpoint.manifest import read_manifest
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.metrics.loop_clock import describe_time, time_by_part
from deepjax.training.run_directory.average import read_average
from deepjax.training.run_directory.command import changed_flags, changed_options
from deepjax.training.run_directory.run_summary import RunSummary, summarize_run
from deepjax.training.run_directory.runs_below import runs_below

EPOCHS_SHOWN = 5  # last epochs that `show` prints
HEAD = ("run", "network", "data set", "state", "steps", "train error", "test error", "last row")
NUMBERS = ("steps", "train error", "test error")


@dataclasses.dataclass(frozen=True)
class _List:
    """List the runs below a folder: how far they are, and their errors."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Folder that holds run directories, at any depth."""
    json: bool = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True)
class _Show:
    """Show one run: its options, its last epochs and its checkpoints."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --output-dir folder of a training run."""
    json: bool = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True)
class _One:
    """Of a run."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --output-dir folder of a training run."""
    json: bool = False
    """Print JSON."""


class _Verify(_One):
    """Verify every checkpoint of a run: the hash of each file, and each array."""


class _Digest(_One):
    """Print one sha256 over the training state of the newest checkpoint of a run."""


@dataclasses.dataclass(frozen=True)
class _Two:
    """Print the differences between the newest checkpoints of two runs."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --output-dir folder of a training run."""
    other: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")]
    """Another one."""
    json: bool = False
    """Print JSON."""


def _parsed(action: str, arguments: Sequence[str]) -> Any:
    """The options of an action."""
    options = ACTION_OPTIONS[action]
    return parse(options, arguments, page=action_page(options, str(__doc__), f"runs {action}"))


def _list(arguments: Sequence[str]) -> None:
    """Print a line for each run; raises InputError where there is none."""
    options = _parsed("list", arguments)
    folder = path_or_url(options.folder, "folder")
    found = [_facts_or_error(run) for run in runs_below(folder)]
    if options.json:
        print_json(found)
        return
    rows = [HEAD, *(_cells(each, str(folder)) for each in found if "error" not in each)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if head in NUMBERS else cell.ljust(width)
            for cell, width, head in zip(row, widths, HEAD, strict=True)
        ]
        print("  ".join(cells).rstrip())
    for each in found:
        if "error" in each:
            print(f"{each['run']} cannot be read: {each['error']}")


def _show(arguments: Sequence[str]) -> None:
    """Print one run."""
    options = _parsed("show", arguments)
    path, name = local_run(options.run, "run", checkpoints=False), _name(options.run)
    run, average = summarize_run(path), read_average(path)
    if options.json:
        found = _facts(run) | {"run": name, "options": changed_options(run.config)}
        found |= {"epochs": run.epochs}
        found |= {"checkpoints": steps_of(path / "checkpoints")}
        found |= {"time": time_by_part(run.rows)}
        print_json(found)
        return
    if average is None:
        print(f"{name}: {run.state}, step {run.step:,} of {run.total_steps:,}")
    else:
        print(f"{name}: {average.describe()}")
    print("options that are not defaults:" if average is None else "options of the first run:")
    for flag in changed_flags(run.config):
        print(f"  {shlex.join(flag)}")
    for row in run.epochs[-EPOCHS_SHOWN:]:
        print(
            f"epoch {row['epoch']:<7g} running error {_percent(row['running_error'])}, "
            f"test error {_percent(row.get('test_error'))}, learning rate "
            f"{row['learning_rate']:.3g}"
        )
    if run.state == "done":
        train, test = _percent(run.last("train_error")), _percent(run.last("test_error"))
        print(f"at the end    train error {train}, test error {test}")
    if where := describe_time(run.rows):
        print(f"time of the loop  {where}")
    found = [_checkpoint(path, step) for step in steps_of(path / "checkpoints")]
    print("\n".join(map(_line, found)) or "no checkpoint yet")


def _verify(arguments: Sequence[str]) -> None:
    """Read every checkpoint of a run; raises InputError if it has none, or a corrupt one."""
    options = _parsed("verify", arguments)
    path, name = local_run(options.run, "run"), _name(options.run)
    if not steps_of(path / "checkpoints"):
        raise InputError(
            f"{name} holds no checkpoint; allowed: the --output-dir folder of a training run"
        )
    found = [_checkpoint(path, step, read=True) for step in steps_of(path / "checkpoints")]
    if options.json:
        print_json({"run": name, "checkpoints": found})
    else:
        print("\n".join(map(_line, found)))
    damaged = [each["error"] for each in found if "error" in each]
    if damaged:
        raise InputError(f"{'; '.join(damaged)}; a resumed run starts from the newest valid one")


def _digest(arguments: Sequence[str]) -> None:
    """Print the sha256 of the newest checkpoint of a run."""
    options = _parsed("digest", arguments)
    (step, value), name = digest(local_run(options.run, "run")), _name(options.run)
    if options.json:
        print_json({"run": name, "step": step, "digest": value})
    else:
        print(f"{value}  step {step}  {name}")


def _diff(arguments: Sequence[str]) -> None:
    """Print the differences between the newest checkpoints of two runs."""
    options = _parsed("diff", arguments)
    one = read_contents(local_run(options.run, "run"))
    other = read_contents(local_run(options.other, "other"))
    found = differences(one, other)
    if options.json:
        names = {"run": _name(options.run), "other": _name(options.other)}
        print_json(names | {"differences": found})
    else:
        print("\n".join(found) or "no difference")


def _name(given: Path) -> str:
    """A run for people: its absolute path or its URL."""
    return str(path_or_url(given, "run"))


def _facts_or_error(run: str) -> dict[str, Any]:
    try:
        path = local_run(run, "run", checkpoints=False)
        return _facts(summarize_run(path)) | {"run": run}
    except InputError as error:
        return {"run": run, "error": str(error)}


def _cells(found: Mapping[str, Any], folder: str) -> tuple[str, ...]:
    """The row of a run in the order of `HEAD`."""
    run = found["run"]
    return (
        run.removeprefix(f"{folder}/") if run != folder else run.rpartition("/")[2],
        found["model"],
        found["dataset"],
        found["state"],
        f"{found['step']:,} / {found['total_steps']:,}",
        _percent(found["train_error"]),
        _percent(found["test_error"]),
        found["updated"],
    )


def _facts(run: RunSummary) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "model": run.config.model,
        "dataset": run.config.dataset,
        "seed": run.config.seed,
        "state": run.state,
        "step": run.step,
        "total_steps": run.total_steps,
        "train_error": run.last("train_error"),
        "test_error": run.last("test_error"),
        "updated": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.updated)),
    }


def _checkpoint(run: Path, step: int, read: bool = False) -> dict[str, Any]:
    """Size, time and test error of a checkpoint; with `read` its digest, or "error"."""
    found: dict[str, Any] = {"step": step}
    try:
        facts = read_manifest(run / "checkpoints" / str(step))
    except ValueError as error:
        found["manifest_error"] = str(error)
    else:
        found["bytes"] = sum(file["bytes"] for file in facts["files"].values())
        found["saved"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["time"]))
        found["test_error"] = facts["metric"]
    if read:
        try:
            found["digest"] = read_contents(run, step).digest
        except InputError as error:
            found["error"] = str(error)
    return found


def _line(found: Mapping[str, Any]) -> str:
    """A checkpoint in one line."""
    if "manifest_error" in found:
        about = found["manifest_error"]
    else:
        about = f"{found['bytes'] / 2**20:9.2f} MiB  {found['saved']}"
        error = found["test_error"]
        about += "" if error is None else f"  test error {100 * error:.2f} %"
    state = "  DAMAGED" if "error" in found else ""
    state = f"  OK  digest {found['digest']}" if "digest" in found else state
    return f"checkpoint {found['step']:>8}  {about}{state}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


ACTION_OPTIONS: dict[str, Any] = {
    "list": _List,
    "show": _Show,
    "watch": runs_watch.Options,
    "compare": runs_compare.Options,
    "verify": _Verify,
    "digest": _Digest,
    "diff": _Two,
}
ACTIONS = {
    "list": _list,
    "show": _show,
    "watch": lambda arguments: runs_watch.watch(_parsed("watch", arguments)),
    "compare": lambda arguments: runs_compare.compare(_parsed("compare", arguments)),
    "verify": _verify,
    "digest": _digest,
    "diff": _diff,
}


def start(arguments: Sequence[str]) -> None:
    """The command: an action. Raises InputError for an unknown one."""
    run_action(ACTIONS, arguments, str(__doc__))
