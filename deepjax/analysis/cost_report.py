"""What a forward pass costs, layer by layer: arithmetic, memory of activations, bytes moved; and what the compiler says of it."""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from deepjax.analysis.computation import Step, steps
from deepjax.analysis.counts import macs_of, params_of
from deepjax.analysis.forward import check, hashable, initialise, reason, run
from deepjax.errors import require
from deepjax.written import as_written

_OUTPUT = "output of "  # before the path, in the name of the identity that marks a module's output
_PRODUCTS = ("conv_general_dilated", "dot_general")


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
    moved: int
    """Bytes of inputs, weights and outputs of its convolutions and matrix products, each read or written once."""

    @property
    def intensity(self) -> float:
        """FLOPs, two a multiply-add, per byte moved; NaN where nothing is moved."""
        return 2 * self.macs / self.moved if self.moved else math.nan


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
    input_shape: tuple[int, ...]
    batch: int
    train: bool
    layers: tuple[LayerCost, ...]
    xla: CompilerCost | None

    @property
    def total(self) -> LayerCost:
        """All layers together."""
        sums = (sum(getattr(row, name) for row in self.layers) for name in ("params", "macs", "activations", "moved"))
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
        lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
        return "\n".join([f"{self._title()}, in {'training' if self.train else 'evaluation'} mode", *lines, *self._compiled()])

    def _title(self) -> str:
        return f"{self.model}: forward pass of {self.batch} x {'x'.join(map(str, self.input_shape))}"

    def _compiled(self) -> list[str]:
        if self.xla is None:
            return []
        share = self.xla.flops / max(2 * self.total.macs, 1)
        flops, moved, alive = (scaled(value) for value in (self.xla.flops, self.xla.bytes_accessed, self.xla.temporary_bytes))
        return [f"XLA: {flops}FLOP ({share:.2f} of 2 x MACs), {moved}B accessed, {alive}B temporary"]


def cost(model: nn.Module, input_shape: tuple[int, ...], *, batch: int = 1, train: bool = False, xla: bool = False) -> CostReport:
    """Parameters, multiply-adds, activation memory and memory traffic of a forward pass, layer by layer, from its traced equations.

    input_shape: of one image, (height, width, channels). `train`: the pass of a training step, whose batch norm uses the batch and
    whose auxiliary heads run. At batch 1 in evaluation the totals are those of `count_macs` and `count_params`.
    Activation memory: the outputs of all modules, each array once, as a backward pass keeps them; what lies between modules, such
    as a ReLU that is a plain function, is left out, for a compiler fuses it. What leaves nn.scan or nn.remat is a new array.
    `xla`: compile the pass as well and report the compiler's own analysis; kept for the next call with the same arguments.
    Raises InputError for a batch below 1 and a shape that the network cannot take.
    Cost: nothing is computed; with `xla` one compilation. Source: facts of arithmetic; intensity is that of the roofline model
    (Williams, Waterman and Patterson 2009).
    """
    require(isinstance(batch, int) and batch >= 1, "batch", batch, "a whole number from 1 up")
    require(bool(input_shape) and min(input_shape) >= 1, "input_shape", input_shape, "(height, width, channels), each from 1 up")
    return _cost(hashable(model), tuple(input_shape), batch, train, xla)


def scaled(value: float) -> str:
    """Three digits and a prefix, to stand before a unit: "1.81 G"."""
    power = 0 if value < 1000 else min(int(math.log10(value)) // 3, 4)
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}"


@functools.lru_cache(maxsize=64)
def _cost(model: nn.Module, input_shape: tuple[int, ...], batch: int, train: bool, xla: bool) -> CostReport:
    images = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
    variables = _variables(model, images)
    check(model, variables, (images, None), lambda outputs, batch: jnp.zeros((), jnp.float32), train)
    called: dict[str, None] = {}

    def forward(variables: Any, images: Any) -> Any:
        return run(model, variables, (images, None), train)

    with nn.intercept_methods(_marker(called)), as_written():
        traced = list(steps(jax.make_jaxpr(lambda *arguments: forward(*arguments))(variables, images).jaxpr))
    rows = _rows(params_of(variables), called, traced)
    compiled = _compiled(forward, variables, images) if xla else None
    return CostReport(type(model).__name__, input_shape, batch, train, rows, compiled)


def _variables(model: nn.Module, images: Any) -> Any:
    try:
        return {"params": {}, **jax.eval_shape(lambda images: initialise(model, images), images)}
    except Exception as error:  # whatever linen, JAX or the network itself raises of shapes
        require(False, "input_shape", images.shape[1:], f"what {type(model).__name__} takes, which says: {reason(error)}")


def _rows(params: dict[str, int], called: Iterable[str], traced: list[Step]) -> tuple[LayerCost, ...]:
    macs, outputs, moved = macs_of(traced), _output_bytes(traced), _moved_bytes(traced)
    rows = (
        LayerCost(path, params.get(path, 0), macs.get(path, 0), outputs.get(path, 0), moved.get(path, 0))
        for path in dict.fromkeys((*called, *macs, *params))
    )
    return tuple(row for row in rows if row.params or row.macs or row.activations)


def _marker(called: dict[str, None]) -> Any:
    """An interceptor under which equations tell their module, as in `computation`, and outputs pass an identity with its name."""
    seen: list[Any] = []  # kept alive, so that no other array gets the identity of one of them

    def named(path: str, output: Any) -> Any:
        if not isinstance(output, jax.Array) or any(output is each for each in seen):
            return output
        seen.append(checkpoint_name(output, _OUTPUT + path))
        return seen[-1]

    def mark(function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        path = "/".join(context.module.path)
        with jax.named_scope(f"<{path}>"):
            output = function(*arguments, **keywords)
        if context.method_name != "__call__":
            return output
        called.setdefault(path)
        return jax.tree.map(functools.partial(named, path), output)

    return mark


def _output_bytes(traced: Iterable[Step]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for step in traced:
        name = step.equation.params.get("name") if step.equation.primitive.name == "name" else None
        if name and name.startswith(_OUTPUT):
            total[name.removeprefix(_OUTPUT)] += step.times * _bytes(step.equation.outvars)
    return total


def _moved_bytes(traced: Iterable[Step]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for step in traced:
        if step.equation.primitive.name in _PRODUCTS:
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
    memory = [f"{scaled(value)}B" for value in (row.activations, row.moved)]
    return (row.layer or "(network)", *counts, *memory, "-" if math.isnan(row.intensity) else f"{row.intensity:.1f}")
