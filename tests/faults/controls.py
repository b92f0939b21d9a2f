"""Negative controls: each guard is taken away in turn, and the faults that it is for must then be lost."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from deepjax.training import checkpoint, config, step
from tests.faults import bad_batches, files, inputs, spread
from tests.faults.tally import Tally

Patch = contextlib.AbstractContextManager[Any]


def _blind(*_: Any) -> jax.Array:
    return jnp.ones((), bool)


CONTROLS: dict[str, tuple[Callable[[], Patch], Callable[[Path], Tally]]] = {
    "sha256 manifest": (
        lambda: mock.patch.multiple(checkpoint, problems=lambda folder: []),
        lambda work: files.bit_flips(20, work, restores=1),
    ),
    "finite numbers": (lambda: mock.patch.object(step, "all_finite", _blind), lambda work: bad_batches.bad_batches(10, work)),
    "labels": (lambda: mock.patch.object(step, "labels_valid", _blind), lambda work: bad_batches.bad_batches(10, work)),
    "errors of saving surfaced": (
        lambda: mock.patch.object(checkpoint.Checkpoints, "_failed", _raise),
        lambda work: files.full_disk(2, work),
    ),
    "configuration compared": (
        lambda: mock.patch.object(config, "_compare", lambda *_: None),
        lambda work: inputs.changed(2, work),
    ),
    "data position": (
        lambda: mock.patch.object(spread, "train_batches", _forgetful(spread.train_batches)),
        lambda work: spread.resumed_order(4, work),
    ),
}


def _raise(self: Any, step: int, error: Exception) -> None:
    raise error


def _forgetful(make: Callable[..., Any]) -> Callable[..., Any]:
    """Batches whose position cannot be set."""

    def batches(*arguments: Any, **keywords: Any) -> Any:
        inner = make(*arguments, **keywords)
        forgetful = mock.MagicMock(set_state=lambda position: None, get_state=inner.get_state)
        forgetful.__next__.side_effect = inner.__next__
        return forgetful

    return batches


def controls(tries: int, work: Path, seed: int = 0) -> Tally:
    """Each control counts as survived when the suite turns red without the guard."""
    tally = Tally("negative controls: each guard removed in turn", "the suite turns red")
    for name, (patch, faults) in list(CONTROLS.items())[: tries or None]:
        with patch():
            tally.attempt(f"without {name} nothing was lost", lambda faults=faults, name=name: _turns_red(faults, work / name))
    tally.note = f"({', '.join(CONTROLS)})"
    return tally


def _turns_red(faults: Callable[[Path], Tally], work: Path) -> bool:
    """Lost faults, or an error that stopped the suite."""
    try:
        return bool(faults(work).losses)
    except Exception:  # red as well
        return True
