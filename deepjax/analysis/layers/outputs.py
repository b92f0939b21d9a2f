"""The outputs of a network's layers in a forward pass, as far as they can be read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from deepjax.analysis.core.layers import Layers, matching_layers
from deepjax.analysis.network.batch import batch_size
from deepjax.analysis.network.calls import LayerOutput, intercept_outputs
from deepjax.analysis.network.module import Batch, Network, apply_module, inputs_of, name_of
from deepjax.analysis.network.requirements import bind_axes
from deepjax.analysis.network.run import requirements_of
from deepjax.analysis.network.task import Task
from deepjax.errors import InputError

Use = Callable[[str, Array], Array | None]
"""(name of an output, the output) -> what is kept of it; None: nothing."""


class OutputNames(NamedTuple):
    """What a forward pass shows of the layers' outputs, in the order of the calls' ends."""

    readable: dict[str, set[str]]
    """Name -> the names by which it can be selected."""
    skipped: dict[str, str]
    """Name -> why it cannot be read."""


def read_outputs(
    model: Network, variables: Any, batch: Batch, train: bool, key: Array, use: Use
) -> tuple[dict[str, Array], OutputNames]:
    """({name: use(name, output)} where it is not None, what was seen)."""
    seen, examples = OutputNames({}, {}), batch_size(batch)

    def forward() -> dict[str, Array]:
        found: dict[str, Array] = {}
        calls: dict[str, int] = {}

        def act(output: LayerOutput) -> Array:
            label = _shown(output.layer.label + output.output)
            if output.layer.in_transform:
                seen.skipped[label] = "inside nn.scan, nn.remat or another transform"
            elif output.value.shape[:1] != (examples,):
                seen.skipped[label] = f"of shape {output.value.shape}, not (examples, ...)"
            else:
                calls[label] = calls.get(label, 0) + 1
                name = label if calls[label] == 1 else f"{label} ({calls[label]})"
                seen.readable[name] = {name, label, _shown(output.layer.label)}
                value = use(name, output.value)
                if value is not None:
                    found[name] = value
            return output.value

        with intercept_outputs(act):
            apply_module(model, variables, batch, train, key)
        return found

    # Bound here, because what is read must leave the axis too.
    axes = requirements_of(model, variables, inputs_of(model, batch), train).axes
    return bind_axes(forward, axes), seen


def readable_outputs(
    task: Task, layers: Layers, field: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of the outputs that `layers` selects, those that cannot be read, with the reason)."""
    kept: list[OutputNames] = []

    def look(variables: Any, batch: Batch, key: Array) -> None:
        kept.append(read_outputs(task.network, variables, batch, task.mode.train, key, _nothing)[1])

    jax.eval_shape(look, task.variables, task.data.first, task.key)
    readable, skipped = kept[-1]
    lines = tuple(f"{name}: {reason}" for name, reason in skipped.items())
    if not readable:
        raise InputError(
            f"{name_of(task.network)} has no layer whose output can be read: {'; '.join(lines)}"
        )
    known = dict.fromkeys(name for names in readable.values() for name in names)
    for given in (layers,) if isinstance(layers, str) else layers or ():
        if given in skipped and given not in known:
            raise InputError(
                f"{field} has {given!r}, which cannot be read: it is {skipped[given]}; allowed: "
                f"{', '.join(readable)}"
            )
    chosen = matching_layers(layers, known)
    return tuple(name for name, names in readable.items() if not chosen.isdisjoint(names)), lines


def _shown(name: str) -> str:
    """The network's own output has an empty path."""
    return f"(network){name}" if not name or name[0] in "[( ." else name


def _nothing(name: str, output: Array) -> None:
    return None
