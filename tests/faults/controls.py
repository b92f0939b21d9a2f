"""Negative controls: with a guard removed, the faults that it handles must be lost."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import paths
from deepjax.data import splits
from deepjax.training import evaluator, preemption
from deepjax.training.checkpoint import inspect, manager
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.checkpoint.store import CheckpointStore
from deepjax.training.graceful_stop import GracefulStop
from deepjax.training.run_directory import config_file, run_lock
from deepjax.training.step import guard, step
from tests.faults import bad_batches, files, guards, inputs, names, spread
from tests.faults.tally import Tally

Patch = contextlib.AbstractContextManager[Any]
# In the order of the arguments of `all_finite`.
PARTS = ("loss", "gradient", "statistics", "parameters", "optimizer state")


@dataclasses.dataclass(frozen=True)
class Control:
    """A guard to remove, and its faults: none is lost with it, some must be without it."""

    without: Callable[[], Patch]
    faults: Callable[[Path], Tally]


def checked(check: Callable[[Path], bool]) -> Callable[[Path], Tally]:
    """One of `guards` as a tally of one fault."""

    def faults(work: Path) -> Tally:
        tally = Tally(check.__name__, "")
        tally.count(check(work), check.__name__)
        return tally

    return faults


def _replaced(owner: Any, name: str, value: Any) -> Callable[[], Patch]:
    return lambda: mock.patch.object(owner, name, value)


def _blind(*_: Any) -> jax.Array:
    return jnp.ones((), bool)


def _blind_to(*parts: str) -> Callable[[], Patch]:
    """The guard does not look at some parts."""

    def some_finite(*trees: Any) -> jax.Array:
        return guard.all_finite(
            *(tree for part, tree in zip(PARTS, trees, strict=True) if part not in parts)
        )

    return _replaced(step, "all_finite", some_finite)


def _batches(*kinds: str) -> Callable[[Path], Tally]:
    return lambda work: bad_batches.bad_batches(len(kinds), work, kinds=kinds)


def _forgetful() -> Patch:
    """Batches whose position cannot be set."""
    make = spread.train_batches

    def batches(*arguments: Any, **keywords: Any) -> Any:
        inner = make(*arguments, **keywords)
        forgetful = mock.MagicMock(set_state=lambda position: None, get_state=inner.get_state)
        forgetful.__next__.side_effect = inner.__next__
        return forgetful

    return mock.patch.object(spread, "train_batches", batches)


def _unmasked() -> Patch:
    """Evaluation that counts the padding of the last batch too."""
    make = evaluator.eval_batches
    return mock.patch.object(
        evaluator,
        "eval_batches",
        lambda *arguments, **keywords: (
            batch | {"mask": np.ones_like(batch["mask"])} for batch in make(*arguments, **keywords)
        ),
    )


def _stops_unsaved(stop: GracefulStop, state: Any, batches: Any, done: int) -> None:
    stop.stop(done, "saved")


def _only_the_newest(store: CheckpointStore, warn: Any) -> int:
    newest = store.steps()[-1]
    return -1 if manager.defects(store.open(newest)) else newest


def _resized(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    return np.zeros(shape, np.uint8)


CONTROLS = {
    "sha256 manifest": Control(
        _replaced(inspect, "problems", lambda folder: []),
        lambda work: files.bit_flips(10, work, restores=1),
    ),
    "fallback to the older step": Control(
        _replaced(manager, "newest_valid", _only_the_newest),
        lambda work: files.bit_flips(2, work, restores=1),
    ),
    "all but the loss": Control(_blind_to(*PARTS[1:]), _batches(*bad_batches.ALONE)),
    "finite loss": Control(_blind_to("loss"), _batches("loss alone")),
    # A non-finite gradient makes parameters and optimizer state non-finite: the three are one part,
    # and the last two are also parts of their own.
    "finite gradients": Control(
        _blind_to("gradient", "parameters", "optimizer state"), _batches("gradient alone")
    ),
    "finite statistics": Control(_blind_to("statistics"), _batches("statistics alone")),
    "finite parameters": Control(_blind_to("parameters"), _batches("parameters alone")),
    "finite optimizer state": Control(
        _blind_to("optimizer state"), _batches("optimizer state alone")
    ),
    "labels": Control(_replaced(step, "labels_valid", _blind), _batches("label -1")),
    "spike detection": Control(
        _replaced(guard.Running, "is_outlier", lambda *_: jnp.zeros((), bool)),
        checked(guards.leaves_spikes_out),
    ),
    "configuration compared": Control(
        _replaced(config_file, "_compare", lambda *_: None), lambda work: inputs.changed(2, work)
    ),
    "data position": Control(_forgetful, lambda work: spread.resumed_order(4, work)),
    "SIGTERM noted": Control(
        _replaced(preemption.PreemptionSignal, "note", lambda *_: None),
        checked(guards.stops_at_sigterm),
    ),
    "save at SIGTERM": Control(
        _replaced(GracefulStop, "save_and_stop", _stops_unsaved),
        checked(guards.stops_at_sigterm),
    ),
    "partial saves cleared": Control(
        _replaced(Checkpoints, "_clear", lambda *_: None), checked(guards.clears_partial_saves)
    ),
    "last step saved": Control(
        _replaced(Checkpoints, "save_last", lambda *_: None), checked(guards.saves_the_last_step)
    ),
    "abandoned branch removed": Control(
        _replaced(Checkpoints, "_delete_from_step", lambda *_: None),
        checked(guards.abandons_the_branch),
    ),
    "best kept": Control(
        _replaced(Checkpoints, "_metric", lambda self, step: None), checked(guards.keeps_the_best)
    ),
    "errors of saving told": Control(
        _replaced(Checkpoints, "_failed", lambda *_: None), checked(guards.tells_of_a_failed_save)
    ),
    "saves opened again": Control(
        _replaced(manager, "defects", lambda folder: []), checked(guards.opens_what_it_saved)
    ),
    "lock": Control(
        _replaced(run_lock.RunLock, "acquire", lambda self: None),
        checked(guards.refuses_a_second_run),
    ),
    "names refused": Control(
        _replaced(paths, "_GLOB", ""), lambda work: names.names(1, work, chosen=("run[seed=1]",))
    ),
    "evaluation mask": Control(_unmasked, checked(guards.counts_every_image_once)),
    "image cap": Control(
        _replaced(splits, "decode_fixed_size", _resized), checked(guards.refuses_bombs)
    ),
    "watchdog": Control(
        _replaced(preemption, "_too_long", lambda *_: False), checked(guards.ends_what_hangs)
    ),
}


def controls(tries: int, work: Path, seed: int = 0) -> Tally:
    """Each control counts as survived when faults are lost without the guard, and only then."""
    tally = Tally("negative controls: each guard removed in turn", "the suite turns red")
    for name, control in list(CONTROLS.items())[: tries or None]:
        tally.attempt(
            f"{name}: nothing was lost without it",
            lambda name=name, control=control: turns_red(control, work / name),
        )
    tally.note = f"({', '.join(CONTROLS)})"
    return tally


def turns_red(control: Control, work: Path) -> bool:
    """Whether faults are lost without the guard; raises if one is lost with it."""
    if lost := control.faults(work / "with").losses:
        raise AssertionError(f"lost with the guard: {lost[0]}")
    with control.without():
        return bool(control.faults(work / "without").losses)
