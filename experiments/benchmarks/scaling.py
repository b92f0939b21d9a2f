"""One step over 1 to 8 simulated devices: its collectives, and that nothing compiles twice.

No times, since the devices have the cores in common.

python experiments/benchmarks/scaling.py
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import format_command, write_result

from deepjax import command_line
from deepjax.errors import InputError

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COMPILATION = "/jax/core/compile/backend_compile_duration"
EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class Options:
    """What is looked at."""

    model: str = "cifar_resnet20"
    """The network, on the digits."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of simulated devices, each in a process of its own."""
    batch_size: int = 96
    """Images of a step, over all devices."""
    fsdp: bool = False
    """Parameters spread over the devices too."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""
    alone: bool = False
    """In this process; the driver sets it."""


def main() -> None:
    """Print a table: collectives of the step, seconds to compile it, later compilations."""
    options = command_line.parse(Options)
    if options.alone:
        print(json.dumps(looked_at(options)))
        return
    rows = [of_process(options, count) for count in options.devices]
    result = {"options": dataclasses.asdict(options) | {"out": None}, "rows": rows}
    print(table(result))
    write_result(result, options.out)


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    rows = result["rows"]
    kinds = [kind for kind in COLLECTIVES if any(row["collectives"].get(kind) for row in rows)]
    lines = [format_command("scaling.py", result["options"], Options()), ""]
    lines.append(
        f"| devices | {' | '.join(kinds)} | MB in them | compile, s | compilations after two of "
        "three epochs |"
    )
    lines.append(f"|---:|{'---:|' * len(kinds)}---:|---:|---:|")
    for row in rows:
        counts = " | ".join(str(row["collectives"].get(kind, 0)) for kind in kinds)
        lines.append(
            f"| {row['devices']} | {counts} | {row['megabytes']:.2f} | {row['compile_s']:.1f} | "
            f"{row['compilations_later']} |"
        )
    return "\n".join(lines)


def of_process(options: Options, count: int) -> dict[str, Any]:
    """What a process with so many devices finds."""
    line = [sys.executable, __file__, "--alone", "--model", options.model, "--devices", str(count)]
    line += ["--batch-size", str(options.batch_size), *(["--fsdp"] if options.fsdp else [])]
    # this script
    ended = subprocess.run(line, check=False, text=True, stdout=subprocess.PIPE)  # noqa: S603
    if ended.returncode:
        raise InputError(
            f"the process with {count} devices ended with {ended.returncode}; what it said stands "
            "above"
        )
    return json.loads(ended.stdout.splitlines()[-1])


def looked_at(options: Options) -> dict[str, Any]:
    """The compiled step of this process's devices, and a run of three epochs."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices[0])
    jax.config.update("jax_enable_compilation_cache", False)
    from deepjax.training import RunOptions, TrainConfig, compile_training, train

    config = TrainConfig(options.model, "digits", epochs=EPOCHS, batch_size=options.batch_size)
    run = RunOptions(fsdp=options.fsdp)
    programs = compile_training(config, run)
    counts, megabytes = collectives(programs.train_step.as_text())
    compilations: list[int] = []
    epoch = [0]

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == COMPILATION:
            compilations.append(epoch[0])

    jax.monitoring.register_event_duration_secs_listener(listen)

    def report(done: int, total: int, note: str) -> None:
        epoch[0] = done // config.steps_per_epoch

    with tempfile.TemporaryDirectory() as folder:
        train(
            config,
            Path(folder) / "run",
            run,
            programs=programs,
            report=report,
            say=lambda line: None,
        )
    return {
        "devices": options.devices[0],
        "collectives": counts,
        "megabytes": megabytes,
        "compile_s": programs.cost.compile_seconds,
        "compilations": len(compilations),
        "compilations_later": sum(at >= 2 for at in compilations),
    }


def collectives(program: str) -> tuple[dict[str, int], float]:
    """The collectives of a compiled program by kind, and the million bytes of their results."""
    counts: dict[str, int] = {}
    size = 0
    for line in program.splitlines():
        found = re.match(
            rf"\s*(?:ROOT )?%?\S+ = (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line
        )
        if found:
            counts[found[2]] = counts.get(found[2], 0) + 1
            size += sum(
                4 * math.prod(int(n) for n in dims.split(",") if n)
                for dims in re.findall(r"\w+\[([\d,]*)\]", found[1])
            )
    return counts, size / 1e6


if __name__ == "__main__":
    command_line.run_command(main)
