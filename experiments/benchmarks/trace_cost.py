r"""The cost of `trace` and of each tier of --probe-every against the training step.

python experiments/benchmarks/trace_cost.py --model resnet50 --image-size 64 --batch-size 16
python experiments/benchmarks/trace_cost.py --model cifar_resnet20 --image-size 32 \
    --batch-size 120 --tiers top layers full
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import command_line
from deepjax.analysis import trace
from deepjax.data.augment.basic import normalize, resize
from deepjax.errors import require
from deepjax.training import compile_training
from deepjax.training.build import CompiledTraining
from deepjax.training.config import train_config
from deepjax.training.metrics.probe import make_probe
from deepjax.training.run_options import ProbeDetail


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed, on images of the digits."""

    model: str = "resnet50"
    """The network."""
    image_size: int = 64
    """Pixels of a side."""
    batch_size: int = 16
    """Images of a step."""
    width: int = 0
    """Filters of the first stage; 0 means the paper's."""
    tiers: tuple[ProbeDetail, ...] = ("top", "layers")
    """Which tiers; "full" compiles second derivatives, of ResNet-50 for many minutes."""
    rounds: int = 9
    """Steps and looks, in turns."""


def main() -> None:
    """Print median time, ratio to the step, and the cost at one probe in 100 steps, by tier."""
    options = command_line.parse(Options)
    require(options.rounds >= 1, "rounds", options.rounds, "1 or more")
    config = train_config(
        options.model,
        batch_size=options.batch_size,
        image_size=options.image_size,
        width=options.width,
    )
    seconds = timed(compile_training(config), options)
    for name, times in seconds.items():
        ratio = statistics.median(
            mine / step for mine, step in zip(times, seconds["step"], strict=True)
        )
        share = "" if name in ("step", "trace") else f"  once in 100 steps: {ratio:.1f} %"
        print(f"{name:10} {1e3 * statistics.median(times):9.1f} ms  {ratio:.2f} x{share}")


def timed(programs: CompiledTraining, options: Options) -> dict[str, list[float]]:
    """Seconds of each, in rounds."""
    state = programs.fresh_state(programs.config)
    rng = np.random.default_rng(0)
    shape = (options.batch_size, *programs.dataset.shape)
    labels = rng.integers(0, programs.dataset.num_classes, options.batch_size).astype(np.int32)
    batch = programs.partitioner.put_batch(
        {"image": rng.integers(0, 17, shape, np.uint8), "label": labels}
    )
    looks = {tier: make_probe(programs, tier) for tier in options.tiers}
    images = resize(normalize(batch["image"], programs.dataset), options.image_size)
    # A copy, because the step donates the arrays of the state.
    fixed = jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats})

    def step() -> Any:
        nonlocal state
        state, metrics = programs.train_step(state, batch)
        return state, metrics

    runs: dict[str, Callable[[], Any]] = {
        "step": step,
        "trace": lambda: trace(programs.model, fixed, (images, batch["label"])).loss,
        **{tier: lambda look=look: look(state, batch).layers.loss for tier, look in looks.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(jax.tree.leaves(run()))
            if turn:  # the first turn compiles
                seconds[name].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    command_line.run_command(main)
