"""The speedrun's recipe in deepjax and in PyTorch, seed by seed in turns.

python experiments/benchmarks/speedrun_pair.py --torch PYTHON
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import (
    Server,
    contender_process,
    format_command,
    format_ratio,
    ratio_interval,
    read_message,
    write_result,
)

from deepjax import command_line
from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.errors import require
from deepjax.progress import display
from deepjax.provenance import provenance
from deepjax.study.speedrun import RECIPES, Speedrun, compile_speedrun, whitening_kernel

sys.path.append(str(Path(__file__).parents[2]))
from experiments.speedrun import summary

OWN = "deepjax"
DATASET = "fashion_mnist_small"  # whose recipe is in float32, as the one in PyTorch


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    torch: str = ""
    """The Python that has PyTorch."""
    seeds: int = 5
    """Trainings of each, after one that is not counted."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""

    def __post_init__(self) -> None:
        require(bool(self.torch), "torch", self.torch, "the path of a Python that has PyTorch")
        require(self.seeds >= 2, "seeds", self.seeds, "2 or more, for an interval")


def main() -> None:
    """Print the accuracy and the seconds of each, and the ratio of seconds in the same turn."""
    options, began = command_line.parse(Options), time.monotonic()
    enable_compilation_cache()
    own = compile_speedrun(DATASET, RECIPES[DATASET].techniques)
    title = "deepjax and PyTorch"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        task = Path(folder) / "task.npz"
        write_task(task, own)
        servers, versions = {}, ""
        for name, flags in (("PyTorch eager", ()), ("PyTorch compiled", ("--compiled",))):
            servers[name] = stack.enter_context(
                contender_process(options.torch, "speedrun_torch.py", [str(task), *flags], {})
            )
            versions = read_message(servers[name])
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in (OWN, *servers)}
        report = stack.enter_context(display(title, {title: options.seeds + 1}, unit="turn"))
        for seed in range(options.seeds + 1):
            for name in list(found)[:: 1 if seed % 2 == 0 else -1]:
                server = servers.get(name)
                result = own.train(seed) if server is None else ask(server, seed)
                if seed:  # the first compiles what is left
                    found[name].append(result)
            report(title, seed + 1, options.seeds + 1)
    device = jax.devices()[0].device_kind
    shown = dataclasses.asdict(options) | {"torch": "PYTHON", "out": None}
    made = provenance(time.monotonic() - began, device)
    # The path of the Python is that of this machine.
    made["command"] = format_command("speedrun_pair.py", shown, Options("none")).strip("`")
    result = {
        "runs": {
            name: [{"accuracy": a, "seconds": s} for a, s in runs] for name, runs in found.items()
        },
        "torch": versions,
    } | made
    print(table(result))
    write_result(result, options.out)


def write_task(path: Path, own: Speedrun) -> None:
    """What the other process needs: images, labels, the whitened stem and the recipe."""
    made, recipe = own.programs, own.recipe
    parts = {"": own.train_split, "test_": own.test_split}
    arrays: dict[str, Any] = {f"{name}images": split.images for name, split in parts.items()}
    arrays |= {f"{name}labels": split.labels for name, split in parts.items()}
    kernel = whitening_kernel(own.train_split.images, made.dataset, recipe.stem[0])
    numbers = {
        "stem": recipe.stem,
        "stages": recipe.stages,
        "steps": made.plan.total_steps,
        "batch_size": made.config.batch_size,
        "rate": made.config.learning_rate,
        "averaging": made.config.ema_decay > 0,
    }
    np.savez(
        path,
        **arrays,
        mean=made.dataset.mean,
        std=made.dataset.std,
        kernel=np.asarray(kernel, np.float32),
        recipe=json.dumps(numbers),
    )


def ask(server: Server, seed: int) -> tuple[float, float]:
    """The accuracy and the seconds of a training in another process."""
    with contextlib.suppress(BrokenPipeError):  # read_message() raises
        print(seed, file=server.stdin, flush=True)
    accuracy, seconds = read_message(server)
    return accuracy, seconds


def table(result: Mapping[str, Any]) -> str:
    """In Markdown."""
    lines = [f"`{result['command']}`", ""]
    lines += ["| what | accuracy | seconds | ratio of seconds to deepjax |", "|---|---|---|---|"]
    own = column(result["runs"][OWN])
    for name, runs in result["runs"].items():
        accuracy, seconds = (
            summary(runs, of, 2, unit)[0] for of, unit in (("accuracy", " %"), ("seconds", ""))
        )
        low, middle, high = ratio_interval(column(runs), own)
        ratio = format_ratio(middle, (low, high))
        lines.append(f"| {name} | {accuracy} | {seconds} | {ratio} |")
    return "\n".join([*lines, "", f"{result['hardware']}; {result['versions']}; {result['torch']}"])


def column(runs: Sequence[Mapping[str, float]]) -> list[float]:
    """The seconds."""
    return [run["seconds"] for run in runs]


if __name__ == "__main__":
    command_line.run_command(main)
