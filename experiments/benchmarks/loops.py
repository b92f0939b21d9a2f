"""The cost of convolutions in loops: as JAX writes gradients, and in XLA:CPU's fast axis order.

python experiments/benchmarks/loops.py
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from harness import format_command, format_ratio, ratio_interval, write_result

from deepjax import command_line
from deepjax.analysis import hvp, init_variables, per_example_gradients
from deepjax.backend import conv_layouts
from deepjax.data import dataset_info
from deepjax.errors import require
from deepjax.models import create_model
from deepjax.training.build import step_options
from deepjax.training.config import train_config
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_train_step

MODEL, WIDTH, IMAGES, PARTS = "cifar_resnet20", 8, 128, 4


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed, on random images in the shape of CIFAR-10."""

    rounds: int = 3
    """Times that each is compiled and timed each way, in turns."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print a line a case: median seconds each way, and the median ratio in the same round."""
    options = command_line.parse(Options)
    require(options.rounds >= 3, "rounds", options.rounds, "3 or more")
    rows = {}
    for name, make in CASES.items():
        seconds: dict[str, list[float]] = {"as written": [], "in order": []}
        for _ in range(options.rounds):
            with mock.patch.object(conv_layouts, "_within", lambda value, _: value):
                seconds["as written"].append(timed(make))
            seconds["in order"].append(timed(make))
        low, ratio, high = ratio_interval(seconds["as written"], seconds["in order"])
        rows[name] = {way: statistics.median(times) for way, times in seconds.items()} | {
            "ratio": ratio,
            "interval": [low, high],
        }
    where = {
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    result = {"options": dataclasses.asdict(options) | {"out": None}, "rows": rows} | where
    print(table(result))
    write_result(result, options.out)


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [format_command("loops.py", result["options"], Options()), ""]
    lines += ["| what | as JAX writes it, s | in order, s | times as fast |", "|---|---:|---:|---|"]
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['as written']:.2f} | {row['in order']:.3f} | "
            f"{format_ratio(row['ratio'], row['interval'])} |"
        )
    return "\n".join([*lines, "", f"`{MODEL}`, width {WIDTH}, {IMAGES} images of 32 x 32 pixels"])


def timed(make: Callable[[], Callable[[], Any]]) -> float:
    """Seconds of one run, compiled anew and warm."""
    jax.clear_caches()
    run = make()
    jax.block_until_ready(run())
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def step(scan: bool, accumulate: int) -> Callable[[], Any]:
    """A training step."""
    data = dataset_info("cifar10")
    config = train_config(
        MODEL, data.name, batch_size=IMAGES, grad_accum_steps=accumulate, augment=False
    )
    model, optimizer = create_model(MODEL, width=WIDTH, scan=scan), make_optimizer(config)
    state = init_state(model, optimizer, data.shape, 0.1, 0)
    run = jax.jit(
        make_train_step(model, optimizer, make_schedule(config), data, step_options(config))
    )
    batch = images()
    return lambda: run(state, batch)


def product() -> Callable[[], Any]:
    """The Hessian times a vector, the data in parts."""
    model, variables = network()
    batch = normalised()
    share = IMAGES // PARTS
    parts = [
        {name: leaf[i * share : (i + 1) * share] for name, leaf in batch.items()}
        for i in range(PARTS)
    ]
    return lambda: hvp(model, variables, parts, variables["params"])


def per_example() -> Callable[[], Any]:
    """Gradients of each image by itself."""
    model, variables = network()
    batch = normalised()

    def run() -> None:
        per_example_gradients(model, variables, batch)  # numbers on the host

    return run


def network() -> tuple[Any, Any]:
    """The network and its variables."""
    model = create_model(MODEL, width=WIDTH)
    return model, init_variables(model, jax.random.key(0), (1, 32, 32, 3))


def images() -> dict[str, jax.Array]:
    """Random images, uint8, and labels."""
    rng = np.random.default_rng(0)
    pixels, labels = (
        rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8),
        rng.integers(0, 10, IMAGES),
    )
    return {"image": jnp.asarray(pixels), "label": jnp.asarray(labels, jnp.int32)}


def normalised() -> dict[str, jax.Array]:
    """Those as instruments take them."""
    batch = images()
    return batch | {"image": batch["image"] / 255.0}


CASES: dict[str, Callable[[], Callable[[], Any]]] = {
    "a training step, unrolled": lambda: step(False, 1),
    "a training step, scanned": lambda: step(True, 1),
    f"a training step, {PARTS} parts": lambda: step(False, PARTS),
    f"the Hessian times a vector, {PARTS} batches": product,
    "per-example gradients": per_example,
}

if __name__ == "__main__":
    command_line.run_command(main)
