"""Images a second from JPEG files to batches: deepjax, tf.data and PyTorch's DataLoader in turns, on the same cores and files.

python experiments/benchmarks/input.py --tensorflow .venv-prepare/bin/python --torch .venv/bin/python
"""

import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_files import write_files, write_records
from scipy.stats import binom

from deepjax import command
from deepjax.errors import InputError, require
from deepjax.training.config import write_text

HERE = Path(__file__).parent
OWN = "deepjax"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    tensorflow: str = ""
    """The Python that has TensorFlow; empty: without it."""
    torch: str = ""
    """The Python that has PyTorch and torchvision; empty: without them."""
    cores: tuple[int, ...] = (1, 2)
    """On how many cores each contender runs, in rounds of their own; threads or workers as many."""
    size: int = 224
    """Pixels of a side of the batches' images."""
    images: int = 192
    """JPEG files; a block is once over all of them."""
    batch_size: int = 64
    """Images of a batch."""
    rounds: int = 15
    """Blocks of each contender; they take turns."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print a table for each number of cores: median images a second, and the median ratio to deepjax's in the same round."""
    options = command.parse(Options)
    require(options.rounds >= 3, "rounds", options.rounds, "3 or more")
    require(options.images >= options.batch_size, "images", options.images, "at least batch_size")
    result: dict[str, Any] = {"options": dataclasses.asdict(options) | {"out": None, "tensorflow": "", "torch": ""}, "tables": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_files(folder, options.images)
        write_records(folder, paths)
        result["bytes_a_file"] = statistics.mean(path.stat().st_size for path in paths)
        for cores in options.cores:
            with started(folder, cores, options) as (servers, versions):
                rates = timed(servers, options.rounds)
            result["tables"][str(cores)] = {name: summary(mine, rates[OWN]) for name, mine in rates.items()}
            result["versions"] = f"Python {platform.python_version()}, {'; '.join(versions)}"
            print(f"\n{cores} of {os.cpu_count()} cores, {result['bytes_a_file'] / 1e3:.0f} kB a file\n")
            print(table(result["tables"][str(cores)]))
    print(f"\n{result['versions']}")
    if options.out is not None:
        write_text(options.out, json.dumps(result, indent=1) + "\n")


@contextlib.contextmanager
def started(folder: Path, cores: int, options: Options) -> Iterator[tuple[dict[str, subprocess.Popen], list[str]]]:
    """The process that serves each contender, ready; and the versions of what they use."""
    scripts = {"input_own.py": sys.executable, "input_tensorflow.py": options.tensorflow, "input_torch.py": options.torch}
    with contextlib.ExitStack() as stack:
        servers, versions = {}, []
        for script, python in scripts.items():
            if python:
                server = stack.enter_context(_server(python, script, folder, cores, options))
                ready = heard(server)
                servers |= dict.fromkeys(ready["names"], server)
                versions.append(ready["versions"])
        yield servers, versions


@contextlib.contextmanager
def _server(python: str, script: str, folder: Path, cores: int, options: Options) -> Iterator[subprocess.Popen]:
    line = [python, str(HERE / script), str(folder), str(cores), str(options.size), str(options.batch_size)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=environment, **pipes) as server:  # noqa: S603  # our own scripts
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.communicate(timeout=30)  # its stdin is closed, so it ends by itself, with worker processes of its own
            server.kill()


def timed(servers: dict[str, subprocess.Popen], rounds: int) -> dict[str, list[float]]:
    """Images a second of each block, in rounds; every other round runs backwards."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for i in range(rounds):
        for name in list(servers)[:: 1 if i % 2 == 0 else -1]:
            print(name, file=servers[name].stdin, flush=True)
            rates[name].append(float(heard(servers[name])))
    return rates


def heard(server: subprocess.Popen) -> Any:
    """The next thing that a server says; raises InputError when it has ended."""
    line = server.stdout.readline() if server.stdout else ""
    if not line:
        raise InputError("a contender's process ended; what it said stands above")
    return json.loads(line)


def summary(mine: list[float], own: list[float]) -> dict[str, Any]:
    """Medians, and the order statistics between which the median of the ratio lies with 95 % (sign test; from six rounds on)."""
    ratios = sorted(a / b for a, b in zip(mine, own, strict=True))
    outside = max(0, int(binom.ppf(0.025, len(ratios), 0.5)) - 1)
    return {
        "images_per_second": statistics.median(mine),
        "ratio": statistics.median(ratios),
        "interval": [ratios[outside], ratios[-1 - outside]],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| what | images/s | ratio to deepjax's loader |", "|---|---:|---|"]
    for name, row in rows.items():
        low, high = row["interval"]
        lines.append(f"| {name} | {row['images_per_second']:.0f} | {row['ratio']:.2f} [{low:.2f}, {high:.2f}] |")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main)
