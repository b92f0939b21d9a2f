"""The cost of the training loop: images per second of `train` and of its bare step, interleaved.

`train` reads batches as it goes, or has the images on the device (`--resident`).

python experiments/benchmarks/loop.py
"""

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from harness import format_command, format_ratio, summary, write_result

from deepjax import command_line
from deepjax.data import Split, dataset_info
from deepjax.errors import require
from deepjax.training import RunOptions, TrainConfig, build, compile_training, train
from deepjax.training.build import CompiledTraining
from deepjax.training.loop import SYNC_EVERY_STEPS

BARE = "bare step"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed, on random images."""

    model: str = "cifar_resnet20"
    """The network."""
    width: int = 0
    """Its width; 0: its own."""
    dataset: str = "cifar10"
    """In whose shape the images are."""
    batch_size: int = 128
    """Images of a step."""
    steps: int = 60
    """Steps of a block, a multiple of 20; the loop saves a checkpoint in its midst."""
    rounds: int = 6
    """Blocks of each, in turns."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print the median images a second of both, and the median ratio in the same round."""
    options = command_line.parse(Options)
    require(options.rounds >= 3, "rounds", options.rounds, "3 or more")
    require(
        options.steps % SYNC_EVERY_STEPS == 0 and options.steps > 0,
        "steps",
        options.steps,
        f"a multiple of {SYNC_EVERY_STEPS}",
    )
    made = compiled(config_of(options))
    rates: dict[str, list[float]] = {BARE: []} | {name: [] for name in made}
    for _ in range(options.rounds):
        rates[BARE].append(bare(made["train"], options))
        for name, programs in made.items():
            rates[name].append(looped(programs, options))
    rows = {name: summary(mine, rates[BARE]) for name, mine in rates.items()}
    where = {
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    result = {"options": dataclasses.asdict(options) | {"out": None}, "rows": rows} | where
    print(table(result))
    write_result(result, options.out)


def config_of(options: Options) -> TrainConfig:
    """The training: some steps before those that are timed, and some after."""
    return TrainConfig(
        options.model,
        options.dataset,
        steps=options.steps + 2 * SYNC_EVERY_STEPS,
        batch_size=options.batch_size,
        width=options.width,
    )


def compiled(config: TrainConfig) -> dict[str, CompiledTraining]:
    """The programs of both kinds of training, on random images."""
    with mock.patch.object(build, "open_split", random_images):
        return {
            "train": compile_training(config),
            "train, resident": compile_training(config, RunOptions(resident=True)),
        }


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [format_command("loop.py", result["options"], Options()), ""]
    lines += ["| what | images/s | ratio to the bare step |", "|---|---:|---|"]
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['images_per_second']:.1f} | "
            f"{format_ratio(row['ratio'], row['interval'])} |"
        )
    return "\n".join(lines)


def bare(made: CompiledTraining, options: Options) -> float:
    """Images a second of the compiled step alone, its batch on the device."""
    state = made.fresh_state(made.config)
    batch = made.partitioner.put_batch(made.batch_at(made.config, 0))
    state, _ = jax.block_until_ready(made.train_step(state, batch))
    began = time.perf_counter()
    for _ in range(options.steps):
        state, _ = made.train_step(state, batch)
    jax.block_until_ready(state)
    return options.steps * options.batch_size / (time.perf_counter() - began)


def looped(made: CompiledTraining, options: Options) -> float:
    """Images a second of `train` between the first of its looks at the device and a later one."""
    seen: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = RunOptions(
            save_every=SYNC_EVERY_STEPS + options.steps // 2, resident=made.resident is not None
        )
        train(
            made.config,
            Path(folder) / "run",
            run,
            programs=made,
            report=lambda done, total, note: seen.append((done, time.perf_counter())),
            say=lambda line: None,
        )
    first = next(each for each in seen if each[0] >= SYNC_EVERY_STEPS)
    last = next(each for each in seen if each[0] >= SYNC_EVERY_STEPS + options.steps)
    return (last[0] - first[0]) * options.batch_size / (last[1] - first[1])


def random_images(config: TrainConfig, options: RunOptions, name: str) -> Split:
    """A few batches in the shape of the data set: what comes after the loop is not timed."""
    data, rng, count = dataset_info(config.dataset), np.random.default_rng(0), 4 * config.batch_size
    labels = rng.integers(0, data.num_classes, count).astype(np.int32)
    return Split(rng.integers(0, 256, (count, *data.shape), np.uint8), labels)


if __name__ == "__main__":
    command_line.run_command(main)
