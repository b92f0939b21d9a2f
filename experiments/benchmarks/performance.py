"""Run every benchmark and write docs/results/performance.md; run nothing else meanwhile.

python experiments/benchmarks/performance.py --torch .venv/bin/python
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import depth
import gpu_program
import loop
import loops
import scaling
import startup
import throughput

from deepjax import command_line
from deepjax.errors import InputError, unknown_name_error
from deepjax.io import write_text

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results"
NOTES = "notes.md"


@dataclasses.dataclass(frozen=True)
class Part:
    """A benchmark of the page."""

    title: str
    module: ModuleType
    arguments: tuple[str, ...] = ()


# with levers beside PyTorch's, VGG's contenders take more than 24 GiB together
SMALL = ("cifar_resnet20", "resnet50", "googlenet_tv")
ON_A_GPU = (
    "--gpu",
    "--precision",
    "bfloat16",
    "--timm",
    "--together",
    "--steps",
    "20",
    "--rounds",
    "7",
    "--checked",
    "3",
)
NETWORKS = ("resnet50", "vgg16_bn", "googlenet_tv", "inception_v3")
PARTS = {
    "gpu": Part("Training on a GPU, side by side", throughput, (*ON_A_GPU, "--models", *NETWORKS)),
    "gpu_program": Part("What a GPU's kernels move", gpu_program, ("--models", *NETWORKS)),
    "throughput": Part("Training, side by side", throughput, ("--levers", "--models", *SMALL)),
    "large": Part("Training of the largest network", throughput, ("--models", "vgg16_bn")),
    "inference": Part("Inference, side by side", throughput, ("--inference",)),
    "depth": Part("Depth", depth),
    "loops": Part("Convolutions inside of loops", loops),
    "startup": Part("Start", startup),
    "loop": Part("The training loop against its bare step", loop),
    "scaling": Part("Over several devices", scaling),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    torch: str = ""
    """The Python that has PyTorch and torchvision; empty: without them."""
    only: tuple[str, ...] = tuple(name for name in PARTS if not name.startswith("gpu"))
    """Parts to measure; the page keeps the others' results. "gpu" needs a GPU."""
    render_only: bool = False
    """Measure nothing: write the page anew."""
    results: Path = RESULTS
    """Where performance.md and performance/ lie."""


def main() -> None:
    """Measure, then write the page."""
    options = command_line.parse(Options)
    for name in options.only:
        if name not in PARTS:
            raise unknown_name_error("part", name, PARTS)
    for name in () if options.render_only else options.only:
        measure(name, options)
    write_text(options.results / "performance.md", render(options.results))
    print(f"read {options.results / 'performance.md'}")


def measure(name: str, options: Options) -> None:
    """Run one benchmark in a process of its own."""
    part = PARTS[name]
    line = [sys.executable, str(part.module.__file__), *arguments(name, options.results)]
    if part.module is throughput and options.torch:
        line += ["--torch", options.torch]
    print(f"\n{part.title}", flush=True)
    if subprocess.run(line, check=False).returncode:  # noqa: S603  # our own scripts
        raise InputError(f"{name} failed; its message stands above, and --only {name} tries again")


def arguments(name: str, results: Path) -> list[str]:
    """The command line of a part's benchmark."""
    return [*PARTS[name].arguments, "--out", str(results / "performance" / f"{name}.json")]


def render(results: Path) -> str:
    """The page: handwritten notes, then each part's tables with their commands."""
    folder = results / "performance"
    lines = ["# Performance: what was measured", "", (folder / NOTES).read_text().strip(), ""]
    for name, part in PARTS.items():
        path = folder / f"{name}.json"
        lines += [f"## {part.title}", ""]
        lines += [
            part.module.table(json.loads(path.read_text())) if path.exists() else "Not measured.",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    command_line.run_command(main)
