"""The table of stages that papers print: output, parameters, multiply-adds, receptive field."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax
from flax import linen as nn

from deepjax.analysis.core.input_shapes import InputShape, input_shapes
from deepjax.analysis.core.module import Network, name_of
from deepjax.analysis.costs.counts import (
    count_macs_by_layer,
    count_params_by_layer,
    uncounted_operations,
)
from deepjax.analysis.jaxpr.module_paths import Computation, Step, computation, steps
from deepjax.analysis.receptive_field.theoretical import ReceptiveField, fields_of

# The collection into which a network may sow the outputs of its stages, each under its name.
FEATURES = "features"


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One stage: all top-level modules whose names agree up to the first "_".

    The model's own layers have the name of its class. Modules without parameters and multiply-adds,
    such as dropout, have no row of their own.
    """

    name: str
    output_shape: tuple[int, ...] | None
    """Shape without its first axis, (height, width, channels) for an image; None if unknown."""
    receptive_field: ReceptiveField | None
    """Receptive field of a unit of the output; None if the output is unknown."""
    params: int
    macs: int
    """Multiply-adds in evaluation, without what `not_counted` names."""
    runs_in_evaluation: bool
    """Whether evaluation runs it: False for auxiliary heads, whose `macs` are therefore 0."""
    not_counted: tuple[str, ...] = ()
    """What multiplies, or may, but is not counted, as in `CostReport`."""


@dataclasses.dataclass(frozen=True)
class _Output:
    shape: tuple[int, ...] | None
    field: ReceptiveField | None


def stage_table(model: nn.Module | Network, input_shape: InputShape) -> tuple[StageRow, ...]:
    """The stages of any linen module, in the order of their first calls; nothing is computed.

    input_shape: (height, width, channels), or as `InputShape` says. Outputs are known only for
    stages that the module sows into "features" under the stage's name; if it sows some, the last
    stage's is what it returns. Params and macs add up to `count_params` and `count_macs`.
    """
    traced = computation(model, input_shapes(input_shape), sow=[FEATURES])
    own = name_of(model)
    params = _by_stage(count_params_by_layer(traced.variables), own)
    by_stage: dict[str, list[Step]] = defaultdict(list)
    for step in steps(traced.jaxpr.jaxpr):
        by_stage[_stage(step.path, own)].append(step)
    macs = {name: sum(count_macs_by_layer(each).values()) for name, each in by_stage.items()}
    missing = {name: uncounted_operations(each) for name, each in by_stage.items()}
    runs = {_stage(path, own) for path in traced.called}
    stages = dict.fromkeys((*(_stage(path, own) for path in traced.initialized), *params, *macs))
    names = [name for name in stages if params.get(name) or macs.get(name) or missing.get(name)]
    outputs = _outputs(traced, [name for name in names if name in runs])

    def row(name: str) -> StageRow:
        output = outputs.get(name, _Output(None, None))
        return StageRow(
            name=name,
            output_shape=output.shape,
            receptive_field=output.field,
            params=params.get(name, 0),
            macs=macs.get(name, 0),
            runs_in_evaluation=name in runs,
            not_counted=missing.get(name, ()),
        )

    return tuple(row(name) for name in names)


def _stage(path: str, own: str) -> str:
    """The name of the top-level module up to its first "_"."""
    name = path.split("/")[0]
    return name.split("_")[0] or name or own


def _by_stage(counts: Mapping[str, int], own: str) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for path, count in counts.items():
        total[_stage(path, own)] += count
    return total


def _outputs(traced: Computation, running: Sequence[str]) -> dict[str, _Output]:
    """The known outputs by stage. running: names of the stages that run, in order."""
    if not traced.sown.get(FEATURES):
        return {}
    shapes = (traced.output, traced.sown)
    leaves, structure = jax.tree.flatten(shapes)
    first_input = len(jax.tree.leaves(traced.variables))
    inputs = traced.jaxpr.in_avals[first_input:]
    is_image = [len(each.shape) for each in inputs] == [4]  # else there are no rows and columns
    fields = fields_of(traced.jaxpr, first_input) if is_image else [None] * len(leaves)
    known = map(_Output, (leaf.shape[1:] for leaf in leaves), fields)
    output, sown = jax.tree.unflatten(structure, known)
    exposed = {
        name: value[-1] if isinstance(value, tuple) else value
        for name, value in sown[FEATURES].items()
    }
    last = {running[-1]: output} if running else {}
    return {name: value for name, value in (last | exposed).items() if isinstance(value, _Output)}
