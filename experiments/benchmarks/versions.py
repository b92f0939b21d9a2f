r"""Two checkouts of deepjax compared: step, loop, instruments and saves, interleaved.

python experiments/benchmarks/versions.py --other ../deepjax-before
python experiments/benchmarks/versions.py --other ../deepjax-before --model resnet50 \
    --batch-size 16 --only step trace save
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, Literal

import jax
from harness import (
    contender_process,
    format_command,
    format_ratio,
    read_message,
    summary,
    write_result,
)

from deepjax import command_line
from deepjax.errors import InputError, require

Block = Literal["step", "loop", "trace", "per_example_gradients", "hessian_trace", "save"]
ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed, on random images of 32x32 pixels."""

    other: Path
    """The checkout that this one is compared with."""
    model: str = "cifar_resnet20"
    """The network."""
    batch_size: int = 128
    """Images of a step."""
    steps: int = 5
    """Steps, or calls of an instrument, of a block."""
    rounds: int = 12
    """Blocks of each, in turns."""
    only: tuple[Block, ...] = ("step", "trace", "per_example_gradients", "hessian_trace")
    """What is timed; hessian_trace has two probes, a save is written, synced and read again. A loop
    is the start of a training, up to the first time after so many steps that it waits for them."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print, for the step and each instrument, the median ratio to the other checkout's rate."""
    options = command_line.parse(Options)
    require(options.rounds >= 6, "rounds", options.rounds, "6 or more")
    if not (options.other / "deepjax").is_dir():
        raise InputError(
            f"other is {options.other}, which has no folder deepjax; allowed: a checkout of deepjax"
        )
    arguments = [options.model, str(options.batch_size), str(options.steps), *options.only]
    rows: dict[str, Any] = {}
    with (
        contender_process(sys.executable, script(ROOT), arguments, checkout(ROOT)) as mine,
        contender_process(
            sys.executable, script(options.other), arguments, checkout(options.other)
        ) as others,
    ):
        names = read_message(mine)["names"]
        read_message(others)
        for name in names:
            rates = timed_block(name, {"this": mine, "other": others}, options.rounds)
            rows[name] = summary(rates["this"], rates["other"])
            print(
                f"{name}: {format_ratio(rows[name]['ratio'], rows[name]['interval'])}", flush=True
            )
    where = {
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    settings = dataclasses.asdict(options) | {"out": None, "other": "PATH"}
    result = {"options": settings, "rows": rows} | where
    print(table(result))
    write_result(result, options.out)


def script(folder: Path) -> str:
    """The contender of a checkout: its own where it has one, for names may differ."""
    own = folder.resolve() / "experiments" / "benchmarks" / "versions_own.py"
    return str(own if own.exists() else ROOT / own.relative_to(folder.resolve()))


def checkout(root: Path) -> dict[str, str]:
    """The environment of a process that imports deepjax from a checkout."""
    return {"PYTHONPATH": str(root.resolve())}


def timed_block(name: str, servers: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Images a second of one block of both checkouts; every other round runs backwards."""
    rates: dict[str, list[float]] = {who: [] for who in servers}
    for i in range(rounds):
        for who in list(servers)[:: 1 if i % 2 == 0 else -1]:
            print(name, file=servers[who].stdin, flush=True)
            rates[who].append(float(read_message(servers[who])))
    return rates


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [format_command("versions.py", result["options"], Options(Path())), ""]
    lines += ["| what | images/s | ratio to the other checkout |", "|---|---:|---|"]
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['images_per_second']:.1f} | "
            f"{format_ratio(row['ratio'], row['interval'])} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run_command(main)
