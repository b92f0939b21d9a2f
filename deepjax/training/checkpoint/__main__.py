"""`python -m deepjax.training.checkpoint {list,verify,digest,diff} RUN [OTHER]`."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deepjax.command_line import parse, run_command
from deepjax.errors import InputError
from deepjax.paths import run_directory
from deepjax.training.checkpoint.inspect import differences, digest, read_contents, steps_of
from deepjax.training.checkpoint.manifest import read_manifest


@dataclasses.dataclass(frozen=True)
class Options:
    """Look at the checkpoints of a training run."""

    action: Annotated[Literal["list", "verify", "digest", "diff"], tyro.conf.Positional]
    """list: steps, sizes and metrics. verify: compare every checkpoint's files with their sha256,
    read all its arrays, and print OK and its digest. digest: one sha256 over the contents of the
    newest. diff: the differences between the newest of two runs."""
    run: Annotated[Path, tyro.conf.Positional]
    """The --output-dir folder of a training run."""
    other: Annotated[Path | None, tyro.conf.Positional] = None
    """Another one, for diff."""


def main() -> None:
    """The command line."""
    run_command(lambda: print_checkpoints(parse(Options)))


def print_checkpoints(options: Options) -> None:
    """Print the result; raises InputError if a run has no checkpoint, or a corrupt one."""
    run = run_directory(options.run, "run")
    if options.action == "digest":
        step, value = digest(run)
        print(f"{value}  step {step}  {options.run}")
    elif options.action == "diff":
        if options.other is None:
            raise InputError(
                "diff takes two runs: python -m deepjax.training.checkpoint diff RUN OTHER"
            )
        lines = differences(
            read_contents(run), read_contents(run_directory(options.other, "other"))
        )
        print("\n".join(lines) or "no difference")
    else:
        _list(run, options.action == "verify")


def _list(run: Path, verify: bool) -> None:
    folder = run / "checkpoints"
    if not steps_of(folder):
        raise InputError(
            f"{run} holds no checkpoint; allowed: the --output-dir folder of a training run"
        )
    damaged = []
    for step in steps_of(folder):
        found = ""
        if verify:
            try:
                found = f"  OK  digest {read_contents(run, step).digest}"
            except InputError as error:
                damaged.append(str(error))
                found = "  DAMAGED"
        print(f"step {step:>8}  {_described(folder / str(step))}{found}")
    if damaged:
        raise InputError(f"{'; '.join(damaged)}; a resumed run starts from the newest valid one")


def _described(folder: Path) -> str:
    try:
        facts = read_manifest(folder)
    except ValueError as error:
        return str(error)
    size = sum(file["bytes"] for file in facts["files"].values()) / 2**20
    metric = "" if facts["metric"] is None else f"  test error {100 * facts['metric']:.2f} %"
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["time"]))
    return f"{size:9.2f} MiB  {saved}{metric}"


if __name__ == "__main__":
    main()
