"""The cost of each option of the training step: time against the plain step, planned memory.

python experiments/benchmarks/step_options.py
"""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import command_line
from deepjax.data import dataset_info
from deepjax.errors import require
from deepjax.io import write_text
from deepjax.training.build import step_options
from deepjax.training.config import train_config
from deepjax.training.network import model_from
from deepjax.training.step import step as step_module
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_train_step

PLAIN = "plain"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "without guard": {},
    "guard of the gradients alone": {},
    "guard of the new parameters alone": {},
    "spike_sigmas=6": {"spike_sigmas": 6.0},
    "ema_decay=0.999": {"ema_decay": 0.999},
    "mixup=0.2": {"mixup": 0.2},
    "auto_augment=rand": {"auto_augment": "rand"},
    "auto_augment=trivial": {"auto_augment": "trivial"},
    "random_erasing=0.1": {"random_erasing": 0.1},
    "loss=sigmoid": {"loss": "sigmoid"},
    "grad_accum_steps=4": {"grad_accum_steps": 4},
    "remat=convolutions": {"remat": "convolutions"},
    "remat=blocks": {"remat": "blocks"},
    "bfloat16": {"precision": "bfloat16"},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    model: str = "cifar_resnet20"
    """The network."""
    dataset: str = "cifar10"
    """The data set whose shapes the random images have."""
    batch_size: int = 128
    """Images of a step."""
    steps: int = 4
    """Steps of a block; the blocks of all variants take turns."""
    rounds: int = 9
    """Blocks of each."""
    only: tuple[str, ...] = ()
    """Names of variants, if not all are wanted beside the plain step."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print for each variant its median time, the ratio to the plain step, and planned memory."""
    options = command_line.parse(Options)
    require(options.rounds >= 1, "rounds", options.rounds, "1 or more")
    require(set(options.only) <= set(VARIANTS), "only", options.only, ", ".join(VARIANTS))
    wanted = {
        name: fields
        for name, fields in VARIANTS.items()
        if not options.only or name in (PLAIN, *options.only)
    }
    ready = {name: prepared(name, fields, options) for name, fields in wanted.items()}
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(options.rounds):
        for name, (run, _) in ready.items():
            seconds[name].append(run())
    rows = {}
    for name, times in seconds.items():
        ratios = sorted(mine / plain for mine, plain in zip(times, seconds[PLAIN], strict=True))
        rows[name] = {
            "step_ms": 1e3 * statistics.median(times),
            "ratio": statistics.median(ratios),
            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
            "temporary_mib": ready[name][1] / 2**20,
        }
        low, high = rows[name]["quartiles"]
        print(
            f"{name:20} {rows[name]['step_ms']:8.1f} ms  {rows[name]['ratio']:.3f} x [{low:.3f}, "
            f"{high:.3f}]  {rows[name]['temporary_mib']:8.1f} MiB"
        )
    if options.out is not None:
        where = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        write_text(
            options.out,
            json.dumps(
                {"options": dataclasses.asdict(options) | {"out": None}, "rows": rows} | where
            )
            + "\n",
        )


def prepared(
    name: str, fields: dict[str, Any], options: Options
) -> tuple[Callable[[], float], int]:
    """A function that times a block of steps, in seconds per step; and a step's temporary bytes."""
    config = train_config(
        model=options.model, dataset=options.dataset, batch_size=options.batch_size, **fields
    )
    optimizer, model = make_optimizer(config), model_from(config)
    step = make_train_step(
        model, optimizer, make_schedule(config), dataset_info(config.dataset), step_options(config)
    )
    state = init_state(model, optimizer, config.input_shape, 0.01, 0, ema=config.ema_decay > 0)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(
            rng.integers(0, 256, (options.batch_size, *config.input_shape), np.uint8)
        ),
        "label": jnp.asarray(rng.integers(0, 10, options.batch_size), jnp.int32),
    }
    with _guard(name):
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    state, _ = compiled(state, batch)
    analysis = compiled.memory_analysis()

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(options.steps):
            state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / options.steps

    return run, 0 if analysis is None else analysis.temp_size_in_bytes


def _guard(name: str) -> contextlib.ExitStack:
    """The step's guard: complete, without its sums over some arrays, or with none of its checks."""
    stack, finite, passed = contextlib.ExitStack(), step_module.all_finite, jnp.ones((), bool)

    def patch(**values: Any) -> None:
        stack.enter_context(mock.patch.multiple(step_module, **values))

    # The arguments: loss, gradients, batch statistics, new parameters, new optimizer state.
    if name == "guard of the gradients alone":
        patch(all_finite=lambda *trees: finite(*trees[:3]))
    elif name == "guard of the new parameters alone":
        patch(all_finite=lambda *trees: finite(trees[0], *trees[2:4]))
    elif name == "without guard":
        patch(
            all_finite=lambda *_: passed,
            labels_valid=lambda *_: passed,
            judge=lambda guard, *_: (passed, guard),
        )
        stack.enter_context(mock.patch.object(optax.tree, "where", lambda good, new, old: new))
    return stack


if __name__ == "__main__":
    command_line.run_command(main)
