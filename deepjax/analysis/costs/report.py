"""What a forward pass costs, layer by layer: arithmetic, memory of activations, bytes moved; and what the compiler says of it."""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import linen as nn

from deepjax.analysis.core.input_shapes import InputShape, input_shapes, is_shape, typed_shapes
from deepjax.analysis.core.module import Network, as_static, mode_text, name_of, run, shapes_of
from deepjax.analysis.costs.counts import macs_of, not_counted, params_of, place
from deepjax.analysis.jaxpr.module_paths import OUTPUT, Step, computation, steps
from deepjax.analysis.jaxpr.products import PRODUCTS


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One module, for a whole batch; of a scanned or shared one all runs together."""

    layer: str
    """Path of the module, as in the parameters; "" is the network."""
    params: int
    macs: int
    """Multiply-adds of convolutions and matrix products, padding included."""
    activations: int
    """Bytes of what the module returns, in its own dtype; an array that several modules hand on belongs to the innermost."""
    bytes_moved: int
    """Bytes of inputs, weights and outputs of its convolutions and matrix products, each read or written once."""

    @property
    def intensity(self) -> float:
        """FLOPs, two a multiply-add, per byte moved; NaN where nothing is moved."""
        return 2 * self.macs / self.bytes_moved if self.bytes_moved else math.nan


@dataclasses.dataclass(frozen=True)
class CompilerCost:
    """What XLA says of the compiled forward pass on the present backend."""

    flops: float
    """Of all operations, elementwise ones too, without padding; the body of a scan counts once."""
    bytes_accessed: float
    """Between its fused kernels."""
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    """The most that is alive between them, beside arguments and outputs."""


@dataclasses.dataclass(frozen=True)
class CostReport:
    """Every module that costs something, in the order of the forward pass, and the sums."""

    model: str
    input_shape: Any
    """Of one example; or shapes and dtypes of inputs that were given as the network gets them."""
    batch: int
    """Examples, of each of which `input_shape` is the shape; 1 for inputs that were given as the network gets them."""
    train: bool
    mode: str
    """How the network was called: "evaluation mode (train=False)", or that no training switch was found."""
    layers: tuple[LayerCost, ...]
    not_counted: tuple[str, ...]
    """What multiplies, or may, and is not counted, and in which layer: products and outputs in a `while` loop whose length depends
    on its data, kernels and callbacks that JAX cannot look into, and primitives that are made of products, such as fft, cholesky
    and triangular_solve. Empty: the counts are complete."""
    xla: CompilerCost | None

    @property
    def inputs(self) -> str:
        """What the pass was given: "2 x 8x8x3", or types and shapes as JAX writes them."""
        if is_shape(self.input_shape):
            return f"{self.batch} x {'x'.join(map(str, self.input_shape))}"
        return typed_shapes(self.input_shape)

    @property
    def total(self) -> LayerCost:
        """All layers together."""
        sums = (
            sum(getattr(row, name) for row in self.layers)
            for name in ("params", "macs", "activations", "moved")
        )
        return LayerCost("total", *sums)

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a layer."""
        return [dataclasses.asdict(row) | {"intensity": row.intensity} for row in self.layers]

    def plot(self, ax: Any = None) -> Any:
        """Multiply-adds by layer as bars with the arithmetic intensity beside them; returns the matplotlib Axes."""
        from deepjax.analysis.instrument_figures import draw_cost

        return draw_cost(self, ax)

    def __str__(self) -> str:
        """A table."""
        head = ("layer", "params", "MACs", "activations", "moved", "FLOPs/byte")
        cells = [head, *(_cells(row) for row in (*self.layers, self.total))]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in cells
        ]
        return "\n".join(
            [f"{self._title()}, {self.mode}", *lines, *self._missing(), *self._compiled()]
        )

    def _title(self) -> str:
        return f"{self.model}: forward pass of {self.inputs}"

    def _missing(self) -> list[str]:
        return [f"not counted: {each}" for each in self.not_counted]

    def _compiled(self) -> list[str]:
        if self.xla is None:
            return []
        share = self.xla.flops / max(2 * self.total.macs, 1)
        flops, moved, alive = (
            scaled(value)
            for value in (self.xla.flops, self.xla.bytes_accessed, self.xla.temporary_bytes)
        )
        return [
            f"XLA: {flops}FLOP ({share:.2f} of 2 x MACs), {moved}B accessed, {alive}B temporary"
        ]


def cost(
    model: nn.Module | Network,
    input_shape: InputShape,
    *,
    batch: int = 1,
    train: bool = False,
    xla: bool = False,
) -> CostReport:
    """Parameters, multiply-adds, activation memory and memory traffic of a forward pass, layer by layer, from its traced equations.

    input_shape: of one image, (height, width, channels), of which `batch` are taken; or inputs of any kind as the network gets
    them, as `InputShape` says. `train`: the pass of a training step, whose batch norm uses the batch and whose auxiliary heads
    run. At batch 1 in evaluation the totals are those of `count_macs` and `count_params`.
    Multiply-adds are those of convolutions and matrix products: padding counts, zeros that a transposed convolution inserts do
    not; every turn of a loop whose length is known counts, and of a conditional its costliest branch. The rest is `not_counted`.
    Activation memory: the outputs of all modules, each array once, as a backward pass keeps them; what lies between modules, such
    as a ReLU that is a plain function, is left out, for a compiler fuses it. What leaves nn.scan or nn.remat is a new array.
    `xla`: compile the pass as well and report the compiler's own analysis; kept for the next call with the same arguments.
    Raises InputError for a batch below 1 and inputs that the network cannot take.
    Cost: nothing is computed; with `xla` one compilation. Source: facts of arithmetic; intensity is that of the roofline model
    (Williams, Waterman and Patterson 2009).
    """
    inputs = input_shapes(input_shape, batch)
    one = tuple(map(int, input_shape)) if is_shape(input_shape) else None
    return _cost(as_static(model), one, batch, *shapes_of(inputs), train, xla)


def scaled(value: float) -> str:
    """Three digits and a prefix, to stand before a unit: "1.81 G"."""
    power = 0 if value < 1000 else min(int(math.log10(value)) // 3, 4)
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}"


@functools.lru_cache(maxsize=64)
def _cost(
    model: nn.Module | Network,
    one: tuple[int, ...] | None,
    batch: int,
    structure: Any,
    shapes: tuple[Any, ...],
    train: bool,
    xla: bool,
) -> CostReport:
    inputs = jax.tree.unflatten(structure, shapes)
    traced = computation(model, inputs, train=train)
    taken = list(steps(traced.jaxpr.jaxpr))
    rows = _rows(params_of(traced.variables), traced.called, taken)
    missing = (*not_counted(taken), *_unknown_outputs(taken))
    mode = mode_text(model, traced.variables, (inputs, None), train)
    compiled = (
        _compiled(
            lambda *given: run(model, given[0], (given[1], None), train), traced.variables, inputs
        )
        if xla
        else None
    )
    return CostReport(name_of(model), one or inputs, batch, train, mode, rows, missing, compiled)


def _rows(
    params: dict[str, int], called: Iterable[str], traced: list[Step]
) -> tuple[LayerCost, ...]:
    macs, outputs, moved = macs_of(traced), _output_bytes(traced), _moved_bytes(traced)
    rows = (
        LayerCost(
            path, params.get(path, 0), macs.get(path, 0), outputs.get(path, 0), moved.get(path, 0)
        )
        for path in dict.fromkeys((*called, *macs, *params))
    )
    return tuple(row for row in rows if row.params or row.macs or row.activations)


def _output_bytes(traced: Iterable[Step]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for step in traced:
        if (path := _output_of(step)) is not None and not step.unbounded:
            total[path] += step.times * _bytes(step.equation.outvars)
    return total


def _unknown_outputs(traced: Iterable[Step]) -> list[str]:
    paths = dict.fromkeys(_output_of(step) for step in traced if step.unbounded)
    return [f"activations of {place(path, True)}" for path in paths if path is not None]


def _output_of(step: Step) -> str | None:
    """The module of which the equation names the output."""
    name = step.equation.params["name"] if step.equation.primitive.name == "name" else ""
    return name.removeprefix(OUTPUT) if name.startswith(OUTPUT) else None


def _moved_bytes(traced: Iterable[Step]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for step in traced:
        if step.equation.primitive.name in PRODUCTS and not step.unbounded:
            total[step.path] += step.times * _bytes((*step.equation.invars, *step.equation.outvars))
    return total


def _bytes(variables: Iterable[Any]) -> int:
    return sum(math.prod(each.aval.shape) * each.aval.dtype.itemsize for each in variables)


def _compiled(forward: Callable[..., Any], variables: Any, images: Any) -> CompilerCost:
    compiled = jax.jit(forward).lower(variables, images).compile()
    analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return CompilerCost(
        flops=float(analysis.get("flops", math.nan)),
        bytes_accessed=float(analysis.get("bytes accessed", math.nan)),
        argument_bytes=memory.argument_size_in_bytes if memory else 0,
        output_bytes=memory.output_size_in_bytes if memory else 0,
        temporary_bytes=memory.temp_size_in_bytes if memory else 0,
    )


def _cells(row: LayerCost) -> tuple[str, ...]:
    counts = [scaled(value).strip() for value in (row.params, row.macs)]
    memory = [f"{scaled(value)}B" for value in (row.activations, row.bytes_moved)]
    return (
        row.layer or "(network)",
        *counts,
        *memory,
        "-" if math.isnan(row.intensity) else f"{row.intensity:.1f}",
    )
