"""One call of an NNX network, as the modules inside of it see it."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from flax import nnx
from flax.core import tracers
from jax import Array

Sown = dict[str, dict[tuple[str, ...], Any]]
"""By collection and path."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A call of the network."""

    number: int
    trace: Any
    """In which the network is called."""
    keys: Mapping[str, Array]
    """By random stream."""
    mutable: Sequence[str]
    """Collections of the network that the call may change."""
    sown: Sown
    """Filled by the call: the collections that it may sow into."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a module is in the network of a run.

    nnx.scan and nnx.jit rebuild modules with it. It differs in every run, so that nnx.jit traces
    again rather than reuse a trace without interceptors, or with other random keys.
    """

    run: int
    path: tuple[str, ...]


_PLACE = "to_nnx__deepjax"  # all other names are variables for nnx.bridge.ToNNX
_numbers = itertools.count()
_current: ContextVar[Run | None] = ContextVar("deepjax_nnx_run", default=None)


@contextlib.contextmanager
def running(keys: Mapping[str, Array], mutable: Sequence[str], sown: Sown) -> Iterator[Run]:
    """Context: the call of a network."""
    run = Run(next(_numbers), tracers.current_trace(), keys, mutable, sown)
    token = _current.set(run)
    try:
        yield run
    finally:
        _current.reset(token)


def current_run() -> Run | None:
    """The run, inside of one."""
    return _current.get()


def mark(module: nnx.Module, run: Run, path: Sequence[Any]) -> None:
    """Let `place_of` know the module, also where a transform of NNX has rebuilt it."""
    object.__setattr__(module, _PLACE, _Place(run.number, tuple(map(str, path))))


def place_of(module: nnx.Module) -> tuple[Run, tuple[str, ...]] | None:
    """(the run, the path of the module in its network); None outside of the run."""
    run, place = _current.get(), vars(module).get(_PLACE)
    return None if run is None or place is None or place.run != run.number else (run, place.path)


def is_inside_transform(run: Run) -> bool:
    """Whether nnx.scan, nnx.remat or the like is traced now."""
    return tracers.current_trace() != run.trace
