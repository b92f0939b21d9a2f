"""Start-up time: imports, and the first training step with a cold and a warm compilation cache.

python experiments/benchmarks/startup.py
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import format_command, format_ratio, ratio_interval, write_result

from deepjax import command_line
from deepjax.errors import InputError, require

ROOT = Path(__file__).parents[2]
IMPORTS = {
    "jax, flax.linen": "import jax, flax.linen",
    "deepjax.models": "import deepjax.models",
    "deepjax": "import deepjax",
}
TRAIN = [
    "experiments/train.py",
    "--model",
    "cifar_resnet20",
    "--dataset",
    "digits",
    "--steps",
    "200",
]
FIRST_STEPS = {"train.py": TRAIN, "the demo": ["experiments/degradation.py"]}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    rounds: int = 9
    """Processes of each import, in turns; of each first step a third of them, at least three."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print a table of each: medians in seconds, and ratios in the same rounds."""
    options = command_line.parse(Options)
    require(options.rounds >= 3, "rounds", options.rounds, "3 or more")
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(options.rounds):
        for name, line in IMPORTS.items():
            imports[name].append(imported(line))
    first_steps: dict[str, list[float]] = {
        f"{name}, {cache}": [] for name in FIRST_STEPS for cache in ("cold", "warm")
    }
    for _ in range(max(3, options.rounds // 3)):
        for name, line in FIRST_STEPS.items():
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    first_steps[f"{name}, {state}"].append(first_step(line, cache))
    result: dict[str, Any] = {
        "import": rows(imports, "jax, flax.linen"),
        "first step": rows(first_steps, "train.py, cold"),
    }
    result |= {"options": {"rounds": options.rounds}, "cores": os.cpu_count()}
    print(table(result))
    write_result(result, options.out)


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [format_command("startup.py", result["options"], Options())]
    for title in ("import", "first step"):
        lines += ["", f"| {title} | seconds | ratio |", "|---|---:|---|"]
        for name, entry in result[title].items():
            lines.append(
                f"| {name} | {entry['seconds']:.2f} | "
                f"{format_ratio(entry['ratio'], entry['interval'])} |"
            )
    return "\n".join(lines)


def rows(times: dict[str, list[float]], first: str) -> dict[str, dict[str, Any]]:
    """Medians, and the ratio to `first`."""
    entries = {}
    for name, mine in times.items():
        low, ratio, high = ratio_interval(mine, times[first])
        entries[name] = {
            "seconds": statistics.median(mine),
            "ratio": ratio,
            "interval": [low, high],
        }
    return entries


def imported(line: str) -> float:
    """Seconds of a process that imports and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", line], check=True, cwd=ROOT)  # noqa: S603  # our own line
    return time.perf_counter() - began


def first_step(line: list[str], cache: str) -> float:
    """Seconds from the start of a command to its first logged step; it is stopped there.

    cache: $XDG_CACHE_HOME.
    """
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        began = time.perf_counter()
        command = [sys.executable, *line, "--output-dir", str(out)]
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        with subprocess.Popen(command, env=environment, cwd=ROOT, **pipes) as process:  # noqa: S603
            while not any(log.stat().st_size for log in out.rglob("metrics.jsonl")):
                if process.poll() is not None:
                    raise InputError(
                        f"{line[0]} ended before its first step; run it alone to see why"
                    )
                time.sleep(0.02)
            took = time.perf_counter() - began
            process.terminate()
            process.wait()
    return took


if __name__ == "__main__":
    command_line.run_command(main)
