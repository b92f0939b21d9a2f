r"""Images per second from a folder of classes: deepjax's loader and torchvision's ImageFolder.

Both read the same JPEG files on the same cores, in turns: a random-resized crop of each image, and
a flip of every second one.

python experiments/benchmarks/own_images.py --torch .venv/bin/python
"""

import contextlib
import dataclasses
import os
import platform
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
from input_files import write_class_folders

from deepjax import command_line
from deepjax.errors import require

REFERENCE = "ImageFolder and DataLoader, uint8"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    torch: str
    """The Python that has PyTorch and torchvision."""
    cores: tuple[int, ...] = (1, 2)
    """On how many cores both run, in rounds of their own, with a thread or a worker for each."""
    size: int = 224
    """Pixels of a side of the batches' images."""
    images: int = 3000
    """JPEG files, of 500 x 375 and 375 x 500 pixels, in ten classes."""
    images_a_block: int = 512
    """Random images that are read before it is the other's turn."""
    batch_size: int = 64
    """Images of a batch."""
    rounds: int = 12
    """Blocks of each contender."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print for each number of cores the median images per second and the ratio to PyTorch's."""
    options = command_line.parse(Options)
    require(options.rounds >= 3, "rounds", options.rounds, "3 or more")
    fits = options.batch_size <= options.images_a_block <= options.images
    require(fits, "images_a_block", options.images_a_block, "batch_size to images")
    given = dataclasses.asdict(options) | {"out": None, "torch": ""}
    result: dict[str, Any] = {"options": given, "tables": {}}
    with tempfile.TemporaryDirectory() as name:
        result["bytes_a_file"] = write_class_folders(Path(name), options.images)
        for cores in options.cores:
            with started(name, cores, options) as (servers, versions):
                rates = time_rounds(servers, options.rounds)
            rows = {name: summary(mine, rates[REFERENCE]) for name, mine in rates.items()}
            result["tables"][str(cores)] = rows
            result["versions"] = f"Python {platform.python_version()}, {'; '.join(versions)}"
            kilobytes = f"{result['bytes_a_file'] / 1e3:.0f} kB a file"
            print(f"\n{cores} of {os.cpu_count()} cores, {kilobytes}\n\n{table(rows, cores)}")
    print(f"\n{result['versions']}")
    write_result(result, options.out)


@contextlib.contextmanager
def started(
    folder: str, cores: int, options: Options
) -> Iterator[tuple[dict[str, Server], list[str]]]:
    """The process that serves each contender, ready; and the versions of what they use."""
    scripts = {"own_images_deepjax.py": sys.executable, "own_images_torch.py": options.torch}
    sizes = (cores, options.size, options.batch_size)
    arguments = [folder, *map(str, sizes)]
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "IMAGES_A_BLOCK": str(options.images_a_block),
    }
    with contextlib.ExitStack() as stack:
        servers, versions = {}, []
        for script, python in scripts.items():
            process = contender_process(python, script, arguments, environment)
            server = stack.enter_context(process)
            ready = read_message(server)
            servers |= dict.fromkeys(ready["names"], server)
            versions.append(ready["versions"])
        yield servers, versions


def table(rows: dict[str, dict[str, Any]], cores: int) -> str:
    """In Markdown."""
    lines = ["| what | images/s | a core | ratio to PyTorch's uint8 |", "|---|---:|---:|---|"]
    for name, row in rows.items():
        rate, ratio = row["images_per_second"], format_ratio(row["ratio"], row["interval"])
        lines.append(f"| {name} | {rate:.0f} | {rate / cores:.0f} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run_command(main)
