r"""Images per second from JPEG files to batches: deepjax, tf.data and PyTorch's DataLoader.

Interleaved, on the same cores and files.

python experiments/benchmarks/input.py --tensorflow .venv-prepare/bin/python \
    --torch .venv/bin/python
"""

import contextlib
import dataclasses
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import (
    Server,
    contender_process,
    format_ratio,
    read_message,
    summary,
    time_rounds,
    write_result,
)
from input_files import write_files, write_records

from deepjax import command_line
from deepjax.errors import require

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
    """Print for each number of cores the median images per second and the ratio to deepjax's."""
    options = command_line.parse(Options)
    require(options.rounds >= 3, "rounds", options.rounds, "3 or more")
    require(options.images >= options.batch_size, "images", options.images, "at least batch_size")
    result: dict[str, Any] = {
        "options": dataclasses.asdict(options) | {"out": None, "tensorflow": "", "torch": ""},
        "tables": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_files(folder, options.images)
        write_records(folder, paths)
        result["bytes_a_file"] = statistics.mean(path.stat().st_size for path in paths)
        for cores in options.cores:
            with started(folder, cores, options) as (servers, versions):
                rates = time_rounds(servers, options.rounds)
            result["tables"][str(cores)] = {
                name: summary(mine, rates[OWN]) for name, mine in rates.items()
            }
            result["versions"] = f"Python {platform.python_version()}, {'; '.join(versions)}"
            print(
                f"\n{cores} of {os.cpu_count()} cores, {result['bytes_a_file'] / 1e3:.0f} kB a "
                "file\n"
            )
            print(table(result["tables"][str(cores)]))
    print(f"\n{result['versions']}")
    write_result(result, options.out)


@contextlib.contextmanager
def started(
    folder: Path, cores: int, options: Options
) -> Iterator[tuple[dict[str, Server], list[str]]]:
    """The process that serves each contender, ready; and the versions of what they use."""
    scripts = {
        "input_own.py": sys.executable,
        "input_tensorflow.py": options.tensorflow,
        "input_torch.py": options.torch,
    }
    arguments = [str(folder), str(cores), str(options.size), str(options.batch_size)]
    environment = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        servers, versions = {}, []
        for script, python in scripts.items():
            if python:
                server = stack.enter_context(
                    contender_process(python, script, arguments, environment)
                )
                ready = read_message(server)
                servers |= dict.fromkeys(ready["names"], server)
                versions.append(ready["versions"])
        yield servers, versions


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| what | images/s | ratio to deepjax's loader |", "|---|---:|---|"]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['images_per_second']:.0f} | "
            f"{format_ratio(row['ratio'], row['interval'])} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run_command(main)
