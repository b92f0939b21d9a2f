"""Cost of a forward pass by layer: multiply-adds, activation memory, bytes moved; XLA's count."""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode, require_mode
from deepjax.analysis.core.result import Result, ends, shortened
from deepjax.analysis.costs.counts import (
    count_macs_by_layer,
    count_params_by_layer,
    describe_layer,
    uncounted_operations,
)
from deepjax.analysis.jaxpr.module_paths import (
    OUTPUT,
    OwnShapes,
    Step,
    computation,
    own_shapes,
    steps,
)
from deepjax.analysis.jaxpr.products import PRODUCTS
from deepjax.analysis.network.input_shapes import InputShape, input_shapes, is_shape, typed_shapes
from deepjax.analysis.network.module import (
    Model,
    Network,
    apply_module,
    mode_text,
    name_of,
    network_of,
    shapes_of,
)

MAX_BARS = 28  # of the figure: the layers of most multiply-adds


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """The cost of one module for a batch; of a scanned or shared one, of all its runs."""

    layer: str
    """Path of the module, as in the parameters; "" is the network."""
    params: int
    macs: int
    """Multiply-adds of convolutions and matrix products, padding included."""
    activation_bytes: int
    """Bytes of the floats that the module returns, in their own dtype; an array that several
    modules pass on counts for the innermost."""
    bytes_moved: int
    """Bytes of inputs, weights and outputs of its convolutions and matrix products, each read or
    written once."""

    @property
    def intensity(self) -> float:
        """FLOPs, two per multiply-add, per byte moved; NaN if nothing is moved."""
        return 2 * self.macs / self.bytes_moved if self.bytes_moved else math.nan


@dataclasses.dataclass(frozen=True)
class CompilerCost:
    """XLA's analysis of the compiled forward pass on the current backend."""

    flops: float
    """Of all operations, elementwise ones too, without padding; the body of a scan counts once."""
    bytes_accessed: float
    """Between its fused kernels."""
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    """Peak memory of intermediate values, without arguments and outputs."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CostReport(Result):
    """Every module with a cost, in forward order, and the sums.

    Of a function all but its parameters are in the row "", and parameters have the path of the
    subtree that they are in.
    """

    model: str
    input_shape: Any
    """Of one example; or shapes and dtypes of inputs that were given as the network gets them."""
    examples: int
    """Number of examples of `input_shape`; 1 for inputs that were given as the network gets
    them."""
    mode: Mode
    mode_text: str
    """How the network was called: "evaluation mode (train=False)", or that it has no switch."""
    layers: tuple[LayerCost, ...]
    not_counted: tuple[str, ...]
    """What multiplies, or may, but is not counted, with its layer: products and outputs in a
    `while` loop whose length depends on its data, kernels and callbacks that JAX cannot inspect,
    and primitives that are made of products, such as fft, cholesky and triangular_solve. If empty,
    the counts are complete."""
    xla: CompilerCost | None

    @property
    def inputs(self) -> str:
        """The inputs as text: "2 x 8x8x3", or types and shapes as JAX writes them."""
        if is_shape(self.input_shape):
            return f"{self.examples} x {'x'.join(map(str, self.input_shape))}"
        return typed_shapes(self.input_shape)

    @property
    def total(self) -> LayerCost:
        """The sum of all layers."""
        names = ("params", "macs", "activation_bytes", "bytes_moved")
        sums = {name: sum(getattr(row, name) for row in self.layers) for name in names}
        return LayerCost("total", **sums)

    def summary(self) -> dict[str, Any]:
        """The sums over all layers."""
        total = self.total
        return {
            "params": total.params,
            "MACs": total.macs,
            "activation bytes": total.activation_bytes,
            "bytes moved": total.bytes_moved,
            "FLOPs per byte": total.intensity,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per layer."""
        return [dataclasses.asdict(row) | {"intensity": row.intensity} for row in self.layers]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Multiply-adds by layer as bars labelled with the arithmetic intensity; returns the Axes.

        Of a deep network the `MAX_BARS` layers with most multiply-adds, in forward order.
        """
        from matplotlib.ticker import FuncFormatter

        from deepjax.analysis.plots import COLORS, canvas

        rows = [row for row in self.layers if row.macs]
        shown = sorted(sorted(rows, key=lambda row: -row.macs)[:MAX_BARS], key=rows.index)
        right = 1.45 * max((row.macs for row in shown), default=1)
        with canvas(ax, 6.4, 1.4 + 0.24 * len(shown), title) as axes:
            axes.barh(range(len(shown)), [row.macs for row in shown], color=COLORS[0], height=0.7)
            for i, row in enumerate(shown):
                text = f" {format_si(row.macs)}MAC, {row.intensity:.3g} FLOP/B"
                axes.text(row.macs, i, text, va="center", fontsize=8, color="0.3")
            names = [row.layer or "(network)" for row in shown]
            axes.set_yticks(range(len(shown)), names, fontsize=8)
            finding = self._plot_title(len(shown), len(rows))
            axes.set(title=finding, xlabel=f"multiply-adds, {self.inputs} (MAC)")
            axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, right))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_si(value).strip()))
            axes.grid(False, axis="y")
        return axes

    def __str__(self) -> str:
        """A table of every layer with SI prefixes, the total, what is not counted, XLA's count."""
        return self._table(self.layers)

    def __repr__(self) -> str:
        """The same of the first and the last layers where there are many."""
        return self._table(ends(self.layers))

    def _table(self, rows: Sequence[LayerCost]) -> str:
        names = ("layer", "params", "MACs", "activations", "bytes moved", "FLOPs/byte")
        cells = [names, *(_cells(row) for row in (*rows, self.total))]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in cells
        ]
        head, *lines, total = lines
        if len(rows) < len(self.layers):
            lines = shortened(lines, len(self.layers), f"... {len(self.layers) - len(rows)} more")
        title = f"{self.model}: forward pass of {self.inputs}, {self.mode_text}"
        missing = [f"not counted: {each}" for each in self.not_counted]
        return "\n".join([title, head, *lines, total, *missing, *self._xla_lines()])

    def _xla_lines(self) -> list[str]:
        if self.xla is None:
            return []
        ratio = self.xla.flops / max(2 * self.total.macs, 1)
        flops, moved, temporary = (
            format_si(value)
            for value in (self.xla.flops, self.xla.bytes_accessed, self.xla.temporary_bytes)
        )
        return [
            f"XLA: {flops}FLOP ({ratio:.2f} of 2 x MACs), {moved}B accessed, {temporary}B temporary"
        ]

    def _plot_title(self, shown: int, layers: int) -> str:
        total = self.total
        if not total.macs:
            return f"{self.model}: no multiply-adds"
        rest = "" if shown == layers else f"; the {shown} costliest shown"
        macs = np.sort([row.macs for row in self.layers])[::-1]
        half = int(np.searchsorted(np.cumsum(macs), total.macs / 2)) + 1
        return (
            f"{self.model}: {format_si(total.macs)}MAC, half of them in {half} of {layers} "
            f"layers{rest}"
        )


@instrument
def cost(
    model: Model,
    input_shape: InputShape,
    *,
    mode: Mode = EVAL,
    examples: int = 1,
    xla: bool = False,
) -> CostReport:
    """Parameters, multiply-adds, activation memory and memory traffic of a forward pass, by layer.

    input_shape: of one image, (height, width, channels), of which `examples` are taken; or inputs
    of any kind as the network gets them, as `InputShape` says. mode: TRAIN is the forward pass of a
    training step, whose batch norm uses the batch and whose auxiliary heads run; `Ghost(k)` costs
    the same. At 1 example the totals are those of `count_macs` and `count_params`. A network of
    `from_function` needs its `params=`.
    Multiply-adds are those of convolutions and matrix products: padding counts, zeros that a
    transposed convolution inserts do not; every iteration of a loop of known length counts, and the
    most expensive branch of a conditional. The rest is in `CostReport.not_counted`. Activation
    memory: the outputs of all modules, each array once, as a backward pass keeps them. What lies
    between modules, such as a ReLU that is a plain function, is not included, since a compiler
    fuses it. What leaves nn.scan or nn.remat is a new array.
    `xla`: also compile the pass and report the compiler's own analysis; kept for later calls with
    the same arguments.
    Raises InputError for no examples, inputs that the network cannot take, and a function
    without `params=`.
    Cost: nothing is computed; with `xla` one compilation.
    Source: arithmetic; intensity as in the roofline model (Williams, Waterman and Patterson 2009).
    """
    network = network_of(model)
    inputs = input_shapes(network, input_shape, examples)
    one = tuple(map(int, input_shape)) if is_shape(input_shape) else None
    own = own_shapes(network, inputs)
    return _cost(network, own, one, examples, *shapes_of(inputs), require_mode(mode), xla)


def format_si(value: float) -> str:
    """Three digits and an SI prefix, to stand before a unit: "1.81 G"."""
    power = 0 if value < 1000 else min(int(math.log10(value)) // 3, 4)
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}"


@functools.lru_cache(maxsize=64)
def _cost(
    model: Network,
    own: OwnShapes,  # tells apart networks that are equal
    one: tuple[int, ...] | None,
    examples: int,
    structure: Any,
    shapes: tuple[Any, ...],
    mode: Mode,
    xla: bool,
) -> CostReport:
    inputs = jax.tree.unflatten(structure, shapes)
    traced = computation(model, inputs, train=mode.train)
    equations = list(steps(traced.jaxpr.jaxpr))

    def forward(variables: Any, inputs: Any) -> Any:
        return apply_module(model, variables, (inputs, None), mode.train)

    return CostReport(
        model=name_of(model),
        input_shape=one or (inputs if inputs.kwargs else inputs.args),
        examples=examples,
        mode=mode,
        mode_text=mode_text(model, traced.variables, (inputs, None), mode.train),
        layers=_rows(count_params_by_layer(traced.variables), traced.called, equations),
        not_counted=(*uncounted_operations(equations), *_unknown_outputs(equations)),
        xla=_compiler_cost(forward, traced.variables, inputs) if xla else None,
    )


def _rows(
    params: dict[str, int], called: Iterable[str], traced: list[Step]
) -> tuple[LayerCost, ...]:
    macs, outputs, moved = count_macs_by_layer(traced), _output_bytes(traced), _bytes_moved(traced)
    rows = (
        LayerCost(
            layer=path,
            params=params.get(path, 0),
            macs=macs.get(path, 0),
            activation_bytes=outputs.get(path, 0),
            bytes_moved=moved.get(path, 0),
        )
        for path in dict.fromkeys((*called, *macs, *params))
    )
    return tuple(row for row in rows if row.params or row.macs or row.activation_bytes)


def _output_bytes(traced: Iterable[Step]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for step in traced:
        if (path := _output_of(step)) is not None and not step.unbounded:
            total[path] += step.times * _bytes(step.equation.outvars)
    return total


def _unknown_outputs(traced: Iterable[Step]) -> list[str]:
    paths = dict.fromkeys(_output_of(step) for step in traced if step.unbounded)
    return [f"activations of {describe_layer(path, True)}" for path in paths if path is not None]


def _output_of(step: Step) -> str | None:
    """The module whose output the equation names."""
    name = step.equation.params["name"] if step.equation.primitive.name == "name" else ""
    return name.removeprefix(OUTPUT) if name.startswith(OUTPUT) else None


def _bytes_moved(traced: Iterable[Step]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for step in traced:
        if step.equation.primitive.name in PRODUCTS and not step.unbounded:
            total[step.path] += step.times * _bytes((*step.equation.invars, *step.equation.outvars))
    return total


def _bytes(variables: Iterable[Any]) -> int:
    return sum(math.prod(each.aval.shape) * each.aval.dtype.itemsize for each in variables)


def _compiler_cost(forward: Callable[..., Any], variables: Any, inputs: Any) -> CompilerCost:
    compiled = jax.jit(forward).lower(variables, inputs).compile()
    analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return CompilerCost(
        flops=float(analysis.get("flops", math.nan)),
        bytes_accessed=float(analysis.get("bytes accessed", math.nan)),
        argument_bytes=memory.argument_size_in_bytes if memory else 0,
        output_bytes=memory.output_size_in_bytes if memory else 0,
        temporary_bytes=memory.temp_size_in_bytes if memory else 0,
    )


def _cells(row: LayerCost) -> tuple[str, ...]:
    counts = [format_si(value).strip() for value in (row.params, row.macs)]
    memory = [f"{format_si(value)}B" for value in (row.activation_bytes, row.bytes_moved)]
    intensity = "-" if math.isnan(row.intensity) else f"{row.intensity:.1f}"
    return (row.layer or "(network)", *counts, *memory, intensity)
