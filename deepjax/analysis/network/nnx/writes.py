"""Writes of an NNX module that its call may not do, found where they happen.

A changed array alone is no sign of a write: nnx.jit and nnx.remat return new
tracers for all variables.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from flax import nnx

from deepjax.analysis.network.adapter import MissingStream, UnexpectedWrite
from deepjax.analysis.network.nnx.sow import collection_name


@dataclasses.dataclass(frozen=True)
class _Refusal:
    """A hook of a variable; it is part of the module's structure, so that nnx.jit traces again."""

    error: type[Exception]
    name: str

    def __call__(self, variable: Any, value: Any) -> Any:
        raise self.error(self.name)


def refuse_writes(module: nnx.Module, mutable: Collection[str], streams: Collection[str]) -> None:
    """Raise in place of writes to other collections, and of draws from other random streams.

    UnexpectedWrite and MissingStream. Parameters may be written. Linen modules inside are left out,
    which have rules of their own. `module` must belong to nobody else.
    """
    variables = [each for each in nnx.iter_graph(module) if isinstance(each[1], nnx.Variable)]
    linen = [path for path, each in nnx.iter_modules(module) if isinstance(each, nnx.bridge.ToNNX)]
    for path, variable in variables:
        hook = _refusal(variable, mutable, streams)
        if hook is None or any(path[: len(outer)] == outer for outer in linen):
            continue
        hooks = variable.get_metadata().get("on_set_value", ())
        hooks = hooks if isinstance(hooks, tuple) else (hooks,)
        variable.set_metadata(on_set_value=(hook, *hooks))


def _refusal(
    variable: nnx.Variable, mutable: Collection[str], streams: Collection[str]
) -> _Refusal | None:
    if isinstance(variable, nnx.RngState):
        is_known = not isinstance(variable, nnx.RngCount) or variable.tag in streams
        return None if is_known else _Refusal(MissingStream, variable.tag)
    name = collection_name(type(variable))
    return None if name == "params" or name in mutable else _Refusal(UnexpectedWrite, name)
