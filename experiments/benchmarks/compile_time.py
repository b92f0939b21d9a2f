"""How long a training step takes to trace and to compile, by network: does depth cost compile time when blocks are scanned?

python experiments/benchmarks/compile_time.py
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import command
from deepjax.errors import require
from deepjax.models import create_model
from deepjax.training.config import write_text


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    names: tuple[str, ...] = ("cifar_resnet20", "cifar_resnet1202")
    """Networks, the first being the one the others are compared with."""
    scan: bool = True
    """Run the equal blocks of a stage as one scanned block."""
    batch_size: int = 128
    """Images of a step."""
    rounds: int = 5
    """Times that each is compiled, in turn."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print a line a network: median seconds to trace, to compile, and the ratio of their sums to the first network's."""
    options = command.parse(Options)
    require(options.rounds >= 1, "rounds", options.rounds, "1 or more")
    jax.config.update("jax_enable_compilation_cache", False)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in options.names}
    for _ in range(options.rounds):
        for name in options.names:
            seconds[name].append(compile_once(name, options))
    first = options.names[0]
    rows = {name: row(times, seconds[first]) for name, times in seconds.items()}
    for name, values in rows.items():
        print(f"{name:20} trace {values['trace_s']:.2f} s, compile {values['compile_s']:.2f} s, {values['ratio']:.2f} x {first}")
    if options.out is not None:
        where = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        result = {"options": dataclasses.asdict(options) | {"out": None}, "rows": rows} | where
        write_text(options.out, json.dumps(result, indent=2) + "\n")


def row(times: list[tuple[float, float]], first: list[tuple[float, float]]) -> dict[str, float]:
    """Medians; the ratio is the median of the ratios of each round."""
    ratios = [sum(mine) / sum(theirs) for mine, theirs in zip(times, first, strict=True)]
    trace, compiled = zip(*times, strict=True)
    return {"trace_s": statistics.median(trace), "compile_s": statistics.median(compiled), "ratio": statistics.median(ratios)}


def compile_once(name: str, options: Options) -> tuple[float, float]:
    """Seconds to trace and to compile one SGD step of a fresh model."""
    jax.clear_caches()
    model = create_model(name, scan=True) if options.scan else create_model(name)
    optimizer = optax.sgd(0.1, momentum=0.9)
    images = jax.ShapeDtypeStruct((options.batch_size, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((options.batch_size,), np.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    opt_state = jax.eval_shape(optimizer.init, variables["params"])

    def step(variables: Any, opt_state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            state = {"params": params, "batch_stats": variables["batch_stats"]}
            output: Any = model.apply(state, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(output[0], labels)
            return jnp.mean(losses), output[1]["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, new = optimizer.update(gradients, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}, new, loss

    began = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(variables, opt_state, images, labels)
    traced = time.perf_counter()
    lowered.compile()
    return traced - began, time.perf_counter() - traced


if __name__ == "__main__":
    command.run(main)
