"""The cost of the instruments: against the training step, their products, and unrolled networks.

python experiments/benchmarks/instruments.py

The limits: `trace` of ResNet-50 at most 1.5 times a training step; the cheapest tier of a probe at
most 1 % of training at one probe in 100 steps; the ten largest eigenvalues at most 1.2 times their
matrix products; on a CPU a scanned network as fast as the unrolled one.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import format_ratio, ratio_interval, write_result

from deepjax import command_line
from deepjax.analysis import (
    TRAIN,
    empirical_fisher,
    fisher,
    gauss_newton,
    gradient_covariance,
    hessian,
    hessian_trace,
    hvp,
    init_variables,
    loss_line,
    ntk,
    per_example_gradients,
    shattering,
    taps,
    top_eigenvalues,
    trace,
)
from deepjax.analysis.curvature.lanczos import lanczos_step
from deepjax.analysis.curvature.matrices import apply
from deepjax.data.augment.basic import normalize, resize
from deepjax.errors import require
from deepjax.models import create_model, stack_blocks
from deepjax.training import compile_training
from deepjax.training.build import CompiledTraining
from deepjax.training.config import train_config
from deepjax.training.metrics.probe import make_probe
from deepjax.training.run_options import ProbeDetail

Seconds = dict[str, list[float]]
SCANNED, WIDTH, SIDE, EXAMPLES = "cifar_resnet56", 8, 16, 32


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed, on images of the digits."""

    model: str = "resnet50"
    """The network that is trained and probed."""
    image_size: int = 64
    """Pixels of a side."""
    batch_size: int = 16
    """Images of a step."""
    tiers: tuple[ProbeDetail, ...] = ("top", "layers")
    """Tiers of the probe; "full" compiles second derivatives, of ResNet-50 for many minutes."""
    curvature_model: str = "cifar_resnet20"
    """The network of the eigenvalues."""
    eigenvalues: int = 10
    """How many."""
    lanczos_steps: int = 30
    """Steps of Lanczos' method."""
    rounds: int = 7
    """Each is timed so often, in turns."""
    out: Path | None = None
    """Where the result is written as JSON; nowhere by default."""


def main() -> None:
    """Print a line for each quantity: median seconds, and the median ratio with its interval."""
    options = command_line.parse(Options)
    require(options.rounds >= 3, "rounds", options.rounds, "3 or more")
    result: dict[str, Any] = {}
    for title, times, against in (
        (f"{options.model} against its training step", probes(options), "step"),
        (f"eigenvalues of {options.curvature_model}", eigenvalues(options), "products"),
    ):
        result[title] = report(title, times, {name: against for name in times if name != against})
    result["memory"] = memory(options)
    title = f"{SCANNED}, width {WIDTH}: scanned against unrolled"
    times = scanned(options.rounds)
    pairs = {name: name.replace("scanned", "unrolled") for name in times if "scanned" in name}
    result[title] = report(title, times, pairs)
    write_result(result, options.out)


def report(title: str, seconds: Seconds, pairs: Mapping[str, str]) -> dict[str, Any]:
    """Print and return medians, and the ratios of the pairs (name -> what it is compared with)."""
    print(title)
    found = {}
    for name, times in seconds.items():
        found[name] = {"seconds": statistics.median(times)}
        line = f"  {name:34} {1e3 * statistics.median(times):9.1f} ms"
        if name in pairs:
            low, ratio, high = ratio_interval(times, seconds[pairs[name]])
            found[name] |= {"ratio": ratio, "interval": [low, high]}
            line += f"  {format_ratio(ratio, (low, high))} of {pairs[name]}"
        print(line, flush=True)
    return found


def in_turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> Seconds:
    """Seconds of each, in rounds; the first round compiles."""
    seconds: Seconds = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(jax.tree.leaves(run()))
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def probes(options: Options) -> Seconds:
    """A training step, `trace`, and each tier of the probe."""
    config = train_config(
        options.model, batch_size=options.batch_size, image_size=options.image_size
    )
    programs: CompiledTraining = compile_training(config)
    state = programs.fresh_state(config)
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
        **{
            f"probe {tier}": lambda look=look: look(state, batch).layers.loss
            for tier, look in looks.items()
        },
    }
    return in_turns(runs, options.rounds)


def eigenvalues(options: Options) -> Seconds:
    """The largest eigenvalues, and as many products with the Hessian."""
    model, variables, batch = small_network(options.curvature_model)
    matrix = hessian(model, variables, batch)
    steps, k = options.lanczos_steps, options.eigenvalues
    vector = jnp.ones(matrix.shape[0], matrix.dtype)

    def products() -> Any:
        found = vector
        for _ in range(steps + k):
            found = matrix @ vector
        return found

    runs = {
        "products": products,
        f"top {k}": lambda: top_eigenvalues(model, variables, batch, k, steps=steps).values,
    }
    return in_turns(runs, options.rounds)


def memory(options: Options) -> dict[str, float]:
    """Print and return temporary bytes of programs, in multiples of those of a gradient."""
    model, variables, batch = small_network(options.curvature_model)
    operators = (hessian, gauss_newton, fisher, empirical_fisher, gradient_covariance)
    matrices = {make.__name__: make(model, variables, batch) for make in operators}
    one = matrices["hessian"]
    vector = jnp.ones(one.shape[0], one.dtype)
    basis = jnp.zeros((options.lanczos_steps, vector.size), vector.dtype)
    programs = {
        "gradient": jax.jit(one.product.gradient).lower(one.data),
        **{
            f"product with {name}": apply.lower(each.data, vector, product=each.product)
            for name, each in matrices.items()
        },
        "Lanczos step": lanczos_step.lower(
            basis, one.data, vector[0], 0, jax.random.key(0), product=one.product
        ),
    }
    used = {name: temporary_bytes(program) for name, program in programs.items()}
    print(f"temporary memory with {options.curvature_model}, in addition to the arguments")
    for name, size in used.items():
        parts = f"{size / used['gradient']:5.2f} of gradient", f"{size / vector.nbytes:6.1f}"
        print(f"  {name:34} {size / 2**20:9.1f} MiB  {parts[0]}, {parts[1]} x the parameters")
    print(f"  {'basis of Lanczos (an argument)':34} {basis.nbytes / 2**20:9.1f} MiB")
    return {name: size / used["gradient"] for name, size in used.items()}


def temporary_bytes(program: Any) -> int:
    """Of a lowered program, as its compiler plans them."""
    plan: Any = program.compile().memory_analysis()
    return plan.temp_size_in_bytes


def scanned(rounds: int) -> Seconds:
    """Each instrument on the network with scanned blocks, and unrolled."""
    model, variables, batch = small_network(SCANNED)
    forms = {
        "unrolled": (model, variables),
        "scanned": (create_model(SCANNED, width=WIDTH, scan=True), stack_blocks(variables)),
    }
    runs: dict[str, Callable[[], Any]] = {}
    for form, (net, v) in forms.items():
        runs |= {
            f"trace, {form}": lambda net=net, v=v: trace(net, v, batch).loss,
            f"taps, {form}": lambda net=net, v=v: taps(net, v, batch, "stem_conv"),
            f"hvp, {form}": lambda net=net, v=v: hvp(net, v, batch, v["params"], mode=TRAIN),
            f"Hessian trace, {form}": lambda net=net, v=v: (
                hessian_trace(net, v, batch, probes=2).trace
            ),
            f"per-example gradients, {form}": lambda net=net, v=v: (
                per_example_gradients(net, v, batch).count
            ),
            f"kernel, {form}": lambda net=net, v=v: ntk(net, v, batch[0][:4], chunk=4).matrix,
            f"shattering, {form}": lambda net=net, v=v: shattering(net, v, batch[0]).cosine,
            f"loss line, {form}": lambda net=net, v=v: (
                loss_line(net, v, batch, v["params"], alphas=[0.0, 0.1]).loss
            ),
        }
    return in_turns(runs, rounds)


def small_network(name: str) -> tuple[Any, Any, tuple[Any, Any]]:
    """A CIFAR network of few filters, its variables, and random images."""
    model = create_model(name, width=WIDTH)
    variables = init_variables(model, jax.random.key(0), (1, SIDE, SIDE, 3))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((EXAMPLES, SIDE, SIDE, 3), np.float32))
    return model, variables, (images, jnp.asarray(rng.integers(0, 10, EXAMPLES)))


if __name__ == "__main__":
    command_line.run_command(main)
