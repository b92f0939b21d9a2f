"""The table of stages that papers print: output, parameters, multiply-adds, receptive field."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode, require_mode
from deepjax.analysis.core.result import Result
from deepjax.analysis.costs.counts import (
    count_macs_by_layer,
    count_params_by_layer,
    uncounted_operations,
)
from deepjax.analysis.jaxpr.module_paths import Computation, Step, computation, steps
from deepjax.analysis.network.input_shapes import InputShape, input_shapes
from deepjax.analysis.network.module import Model, mode_text, name_of
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
    """Multiply-adds, without what `not_counted` names."""
    runs: bool
    """Whether the network calls it in this mode: False in evaluation for auxiliary heads, whose
    `macs` are therefore 0."""
    not_counted: tuple[str, ...] = ()
    """What multiplies, or may, but is not counted, as in `CostReport`."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StageTable(Result, Sequence[StageRow]):
    """The stages, in the order of their first calls: a sequence of `StageRow`."""

    model: str
    stages: tuple[StageRow, ...]
    mode: Mode
    mode_text: str
    """How the network was called: "evaluation mode (train=False)", or that it has no switch."""

    def __len__(self) -> int:
        """Number of stages."""
        return len(self.stages)

    def __getitem__(self, index: Any) -> Any:
        """A stage, or a tuple of some."""
        return self.stages[index]

    def summary(self) -> dict[str, Any]:
        """Number of stages, and the sums."""
        return {
            "stages": len(self),
            "params": sum(row.params for row in self),
            "MACs": sum(row.macs for row in self),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per stage; receptive field and stride as (rows, columns)."""
        return [
            {
                "stage": row.name,
                "output": row.output_shape,
                "params": row.params,
                "macs": row.macs,
                "receptive_field": row.receptive_field and row.receptive_field.size,
                "stride": row.receptive_field and row.receptive_field.stride,
                "runs": row.runs,
                "not_counted": row.not_counted or None,
            }
            for row in self
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Each stage's fraction of the parameters and of the multiply-adds; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        names, total = [row.name for row in self], self.summary()
        series = {
            "parameters": ([row.params for row in self], total["params"]),
            "multiply-adds": ([row.macs for row in self], total["MACs"]),
        }
        finding = f"{self.model}: {total['params']:,} parameters, {total['MACs']:,} multiply-adds"
        with canvas(ax, 6.0, 3.8, title) as axes:
            for index, (label, (values, whole)) in enumerate(series.items()):
                places = [place + 0.4 * (index - 0.5) for place in range(len(names))]
                heights = [100 * value / max(whole, 1) for value in values]
                axes.bar(places, heights, width=0.4, color=COLORS[index], label=label)
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set(title=finding, ylabel="fraction of the network (%)")
            axes.grid(False, axis="x")
            axes.legend()
        return axes


@dataclasses.dataclass(frozen=True)
class _Output:
    shape: tuple[int, ...] | None
    field: ReceptiveField | None


@instrument
def stage_table(model: Model, input_shape: InputShape, *, mode: Mode = EVAL) -> StageTable:
    """The stages of any network, in the order of their first calls; nothing is computed.

    input_shape: (height, width, channels), or as `InputShape` says. mode: which forward pass;
    `Ghost(k)` counts like TRAIN. Outputs are known only for stages that a linen module sows into
    "features" under the stage's name; if it sows some, the last stage's is what it returns. Params
    and macs add up to `count_params` and `count_macs`. Of a function, which needs its `params=`,
    the stages are the branches of the tree of parameters, and all multiply-adds are the function's.
    """
    inputs, train = input_shapes(model, input_shape), require_mode(mode).train
    traced = computation(model, inputs, train=train, sow=[FEATURES])
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
            runs=name in runs,
            not_counted=missing.get(name, ()),
        )

    text = mode_text(model, traced.variables, (inputs, None), train)
    return StageTable(own, tuple(map(row, names)), mode, text)


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
