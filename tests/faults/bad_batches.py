"""Batches that hold what no batch should, against the policies of the guard."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.models import create_model
from deepjax.training.build import step_options
from deepjax.training.config import train_config
from deepjax.training.guard_policy import OnNonfinite
from deepjax.training.step import step as step_module
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import TrainState, init_state
from deepjax.training.step.step import make_eval_step, make_train_step
from tests.faults.tally import Tally
from tests.faults.trapped import BRIGHT, DIGITS, Trapped

POLICIES: tuple[OnNonfinite, ...] = ("skip", "halt")

ALONE = tuple(f"{part} alone" for part in BRIGHT)
KINDS = ("NaN pixel", "label -1", "label n", "empty batch", "constant batch", *ALONE)
MODEL = Trapped(create_model("cifar_resnet20", width=2, stages=(1, 1, 1)))


def bad_batch(kind: str, rng: np.random.Generator, size: int = 16) -> dict[str, np.ndarray]:
    """A batch of random images, bad in one way; floats, since bytes hold no NaN."""
    count = 0 if kind == "empty batch" else size
    images = rng.integers(0, 17, (count, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 10, count).astype(np.int32)
    if kind == "NaN pixel":  # not at the edge, which a random crop may leave out
        images[rng.integers(size), rng.integers(2, 6), rng.integers(2, 6), 0] = rng.choice(
            [np.nan, np.inf, -np.inf]
        )
    elif kind == "constant batch":
        images[:] = rng.integers(0, 17)
        labels[:] = rng.integers(0, 10)
    elif kind in ALONE:
        images[rng.integers(size), rng.integers(2, 6), rng.integers(2, 6), 0] = BRIGHT[
            kind.removesuffix(" alone")
        ]
    elif kind.startswith("label"):
        labels[rng.integers(size)] = -1 if kind == "label -1" else rng.choice([10, 255, 2**31 - 1])
    return {"image": images, "label": labels}


@functools.cache
def steps_of(
    policy: OnNonfinite, optimizer_name: Literal["sgd", "adamw"], guard: object
) -> tuple[TrainState, Callable[..., Any]]:
    """The state before step 0, and a step compiled for a policy; a new `guard` compiles anew."""
    config = train_config(
        model="cifar_resnet20",
        batch_size=16,
        steps=8,
        warmup_epochs=0.0,
        on_nonfinite=policy,
        optimizer=optimizer_name,
    )
    optimizer = make_optimizer(config)
    step = make_train_step(MODEL, optimizer, make_schedule(config), DIGITS, step_options(config))
    return init_state(MODEL, optimizer, DIGITS.shape, 0.1, 0), jax.jit(step)


def finite(tree: object) -> bool:
    """Whether every number is."""
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def bad_batches(tries: int, work: Path, seed: int = 0, kinds: Sequence[str] = KINDS) -> Tally:
    """Good, bad, good: the bad step is skipped or halts; numbers and evaluation stay finite."""
    tally = Tally(
        "NaN pixel, label -1, label n, empty or constant batch; "
        "loss, gradient, statistics, parameters, optimizer state alone bad",
        "policy obeyed; parameters, statistics, evaluation finite",
    )
    evaluate = jax.jit(make_eval_step(MODEL, DIGITS))
    for turn in range(tries):
        kind, policy = kinds[turn % len(kinds)], POLICIES[turn // len(kinds) % 2]
        rng = np.random.default_rng((seed, turn))
        name = "adamw" if kind == "optimizer state alone" else "sgd"
        start, step = steps_of(policy, name, (step_module.all_finite, step_module.labels_valid))
        good = bad_batch("none", rng)
        before, _ = step(start, good)
        after, _ = step(before, bad_batch(kind, rng))
        last, _ = step(after, good)
        sums = evaluate(last.params, last.batch_stats, good | {"mask": np.ones(16, np.float32)})
        is_bad = kind != "constant batch"
        halted, skipped = (
            int(last.guard.halted),
            int(jnp.sum((last.guard.skipped >= 0).astype(jnp.int32))),
        )
        obeyed = {
            "skip": (halted, skipped, int(last.step)) == (-1, int(is_bad), 3),
            "halt": (halted, skipped, int(last.step)) == ((1, 0, 1) if is_bad else (-1, 0, 3)),
        }[policy]
        fine = finite((last.params, last.batch_stats, last.opt_state, sums))
        tally.count(
            obeyed and fine,
            f"{kind} under {policy}: halted {halted}, skipped {skipped}, finite {fine}",
        )
    return tally
