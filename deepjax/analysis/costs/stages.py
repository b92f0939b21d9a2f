"""What each stage of a network hands on, holds, costs and sees: the table that papers print of their architectures."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax
from flax import linen as nn

from deepjax.analysis.core.input_shapes import InputShape, input_shapes
from deepjax.analysis.core.module import Network, name_of
from deepjax.analysis.costs.counts import macs_of, not_counted, params_of
from deepjax.analysis.jaxpr.module_paths import Computation, Step, computation, steps
from deepjax.analysis.receptive_field.theoretical import ReceptiveField, fields_of

FEATURES = "features"  # the collection that a network may sow its stages' outputs into, each under its stage's name


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One stage: all top-level modules whose names begin alike up to the first "_". The model's own layers have its class's name.

    Modules without parameters and multiply-adds, such as dropout, have no row of their own.
    """

    name: str
    output: tuple[int, ...] | None
    """Shape without its first axis, (height, width, channels) for an image; None where it is not known."""
    field: ReceptiveField | None
    """What a unit of the output sees; None where the output is not known."""
    params: int
    macs: int
    """Multiply-adds in evaluation, without what `not_counted` names."""
    runs: bool
    """Whether evaluation runs it: False for auxiliary heads, whose `macs` are therefore 0."""
    not_counted: tuple[str, ...] = ()
    """What multiplies, or may, and is not counted, as in `CostReport`."""


@dataclasses.dataclass(frozen=True)
class _Output:
    shape: tuple[int, ...] | None
    field: ReceptiveField | None


def stage_table(model: nn.Module | Network, input_shape: InputShape) -> tuple[StageRow, ...]:
    """The stages of any linen module, in the order in which its forward pass first calls them; nothing is computed.

    The outputs that are known are those that the module sows into "features" under a stage's name; where it sows some, the last
    stage's is what it returns. input_shape: (height, width, channels), or as `InputShape` says.
    Params and macs add up to `count_params` and `count_macs`.
    """
    traced = computation(model, input_shapes(input_shape), sow=[FEATURES])
    own = name_of(model)
    params = _by_stage(params_of(traced.variables), own)
    by_stage: dict[str, list[Step]] = defaultdict(list)
    for step in steps(traced.jaxpr.jaxpr):
        by_stage[_stage(step.path, own)].append(step)
    macs = {name: sum(macs_of(own_steps).values()) for name, own_steps in by_stage.items()}
    missing = {name: not_counted(own_steps) for name, own_steps in by_stage.items()}
    runs = {_stage(path, own) for path in traced.called}
    stages = dict.fromkeys((*(_stage(path, own) for path in traced.initialized), *params, *macs))
    names = [name for name in stages if params.get(name) or macs.get(name) or missing.get(name)]
    outputs = _outputs(traced, [name for name in names if name in runs])

    def row(name: str) -> StageRow:
        output = outputs.get(name, _Output(None, None))
        return StageRow(
            name,
            output.shape,
            output.field,
            params.get(name, 0),
            macs.get(name, 0),
            name in runs,
            missing.get(name, ()),
        )

    return tuple(row(name) for name in names)


def _stage(path: str, own: str) -> str:
    """The text before the first "_" of the top-level module's name."""
    name = path.split("/")[0]
    return name.split("_")[0] or name or own


def _by_stage(counts: Mapping[str, int], own: str) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for path, count in counts.items():
        total[_stage(path, own)] += count
    return total


def _outputs(traced: Computation, running: Sequence[str]) -> dict[str, _Output]:
    """What is known of the stages' outputs, by their names; `running`: the names in order."""
    if not traced.sown.get(FEATURES):
        return {}
    shapes = (traced.output, traced.sown)
    leaves, structure = jax.tree.flatten(shapes)
    images = len(jax.tree.leaves(traced.variables))
    inputs = traced.jaxpr.in_avals[images:]
    has_place = [len(each.shape) for each in inputs] == [
        4
    ]  # vectors, for one, have no rows and columns to see
    fields = fields_of(traced.jaxpr, images) if has_place else [None] * len(leaves)
    output, sown = jax.tree.unflatten(
        structure, map(_Output, (leaf.shape[1:] for leaf in leaves), fields)
    )
    exposed = {
        name: value[-1] if isinstance(value, tuple) else value
        for name, value in sown[FEATURES].items()
    }
    last = {running[-1]: output} if running else {}
    return {name: value for name, value in (last | exposed).items() if isinstance(value, _Output)}
