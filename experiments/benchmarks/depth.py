"""The cost of depth: tracing, compilation, memory and time of a step; unrolled, scanned, remat.

python experiments/benchmarks/depth.py
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from harness import format_command, write_result

from deepjax import command_line
from deepjax.data import dataset_info
from deepjax.errors import require
from deepjax.models import create_model
from deepjax.training.build import step_options
from deepjax.training.config import train_config
from deepjax.training.memory import StepCost, compile_step
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_train_step

Way = Literal["unrolled", "scanned", "scanned, remat"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured, on images of CIFAR-10."""

    depths: tuple[int, ...] = (20, 110, 1202)
    """Layers of the CIFAR ResNets, 6n + 2; the first is the one the others are compared with."""
    ways: tuple[Way, ...] = ("scanned",)
    """How the equal blocks of a stage run; "unrolled" compiles 1202 layers for long."""
    batch_size: int = 16
    """Images of a step."""
    rounds: int = 3
    """Times that each is compiled, in turns."""
    steps: int = 5
    """Steps to time of each, after the compilations; 0: none."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compilation of a step."""

    trace_s: float
    cost: StepCost
    step: Any
    state: Any
    batch: Any


def main() -> None:
    """Print medians by depth and form, with the ratio of tracing and compilation to the first."""
    options = command_line.parse(Options)
    require(options.rounds >= 1, "rounds", options.rounds, "1 or more")
    jax.config.update("jax_enable_compilation_cache", False)
    cases: list[tuple[Way, int]] = [
        (way, depth) for way in options.ways for depth in options.depths
    ]
    seconds: dict[Any, list[tuple[float, float]]] = {case: [] for case in cases}
    rows = []
    for number in range(options.rounds):
        for case in cases:
            made = compiled(*case, options)
            seconds[case].append((made.trace_s, made.cost.compile_seconds))
            if number == options.rounds - 1:
                rows.append(row(*case, made, options.steps))
    for case, values in zip(cases, rows, strict=True):
        values |= of_rounds(seconds[case], seconds[case[0], options.depths[0]])
    where = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    result = {"options": dataclasses.asdict(options) | {"out": None}, "rows": rows} | where
    print(table(result))
    write_result(result, options.out)


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    first, batch = result["options"]["depths"][0], result["options"]["batch_size"]
    lines = [format_command("depth.py", result["options"], Options()), ""]
    lines.append(
        f"| layers | blocks | trace, s | compile, s | both, against {first} layers | memory of a "
        f"step of {batch} | step, s |"
    )
    lines.append("|---:|---|---:|---:|---:|---:|---:|")
    for row in result["rows"]:
        step = "not timed" if row["step_s"] is None else f"{row['step_s']:.2f}"
        took = f"{row['trace_s']:.2f} | {row['compile_s']:.2f} | {row['ratio']:.2f}"
        lines.append(f"| {row['depth']} | {row['way']} | {took} | {row['mib']:.0f} MiB | {step} |")
    return "\n".join(lines)


def of_rounds(
    times: list[tuple[float, float]], first: list[tuple[float, float]]
) -> dict[str, float]:
    """Medians; the ratio is the median of the ratios of each round."""
    ratios = [sum(mine) / sum(theirs) for mine, theirs in zip(times, first, strict=True)]
    trace, compiling = zip(*times, strict=True)
    return {
        "trace_s": statistics.median(trace),
        "compile_s": statistics.median(compiling),
        "ratio": statistics.median(ratios),
    }


def compiled(way: Way, depth: int, options: Options) -> Compiled:
    """The step that training takes, compiled anew."""
    jax.clear_caches()
    remat = "blocks" if way.endswith("remat") else "none"
    config = train_config(
        f"cifar_resnet{depth}", "cifar10", batch_size=options.batch_size, remat=remat, augment=False
    )
    data = dataset_info("cifar10")
    model = create_model(config.model, scan=way != "unrolled")
    optimizer = make_optimizer(config)
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, data.shape, 0.1, 0))
    batch = {
        "image": jax.ShapeDtypeStruct((options.batch_size, *data.shape), np.uint8),
        "label": jax.ShapeDtypeStruct((options.batch_size,), np.int32),
    }
    step = jax.jit(
        make_train_step(model, optimizer, make_schedule(config), data, step_options(config)),
        donate_argnums=0,
    )
    began = time.perf_counter()
    step.trace(shapes, batch)
    trace_s = time.perf_counter() - began
    runs, cost = compile_step(step, shapes, batch)
    return Compiled(trace_s, cost, runs, shapes, batch)


def row(way: Way, depth: int, made: Compiled, steps: int) -> dict[str, Any]:
    """Planned memory, and the median time of a step; with parameters of 0, which take as long."""
    state, batch = jax.tree.map(_zeros, (made.state, made.batch))
    times = []
    for _ in range(steps + 1 if steps else 0):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(made.step(state, batch))
        times.append(time.perf_counter() - began)
    step_s = statistics.median(times[1:]) if steps else None
    return {
        "way": way,
        "depth": depth,
        "mib": made.cost.bytes_per_device / 2**20,
        "gflops": made.cost.flops / 1e9,
        "step_s": step_s,
    }


def _zeros(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(leaf.shape, leaf.dtype)


if __name__ == "__main__":
    command_line.run_command(main)
