"""The neural tangent kernel of a network, and its spectrum.

Jacot, Gabriel and Hongler, "Neural tangent kernel", 2018 (arXiv:1806.07572). Novak, Sohl-Dickstein
and Schoenholz, "Fast finite width neural tangent kernel", 2022 (arXiv:2206.08720).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.batch import batch_size
from deepjax.analysis.core.module import (
    Batch,
    Model,
    apply_module,
    describe_outputs,
    entry,
    mode_text,
    shapes_of,
    validate_inputs,
)
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import as_real, real_count, restored, sum_dtype, widened
from deepjax.errors import require

Output = Literal["mean", "trace", "full"]


@dataclasses.dataclass(frozen=True, eq=False)
class TangentKernel:
    """The empirical neural tangent kernel.

    Inner products of the gradients of a network's outputs at pairs of inputs.
    """

    matrix: np.ndarray
    """(n, m), or (n, m, k, k) with output="full"; float64, computed in float32 (or in float64
    where the parameters are)."""
    output: Output
    outputs: int
    """k: number of outputs per example."""
    parameters: int
    """Number of real numbers, two for a complex parameter."""
    symmetric: bool
    """Whether rows and columns are the same inputs, so that there are eigenvalues."""
    eps: float
    """Relative rounding of the dtype of the computation."""
    mode: str
    """How the network was set to evaluation, and which streams and collections it still uses."""

    @property
    def flattened(self) -> np.ndarray:
        """(n, m), or (n k, m k) with the outputs of an example next to each other."""
        if self.output != "full":
            return self.matrix
        n, m, k, _ = self.matrix.shape
        return self.matrix.transpose(0, 2, 1, 3).reshape(n * k, m * k)

    @functools.cached_property
    def eigenvalues(self) -> np.ndarray:
        """(n,) or (n k,), descending; raises InputError for a kernel between two sets of inputs."""
        require(
            self.symmetric,
            "kernel",
            "between two sets of inputs, which has no eigenvalues",
            "a kernel of one set",
        )
        return np.linalg.eigvalsh(self.flattened)[::-1]

    @property
    def condition(self) -> float:
        """Condition number; infinite where the smallest eigenvalue is within rounding of 0.

        About the number of gradient descent steps that the slowest direction needs (Xiao et al.
        2020, arXiv:1912.13053, section 2).
        """
        values = self.eigenvalues
        return float(values[0] / values[-1]) if values[-1] > self.rounding else math.inf

    @property
    def rounding(self) -> float:
        """Eigenvalues up to this value are indistinguishable from 0."""
        return len(self.eigenvalues) * self.eps * float(self.eigenvalues[0])

    def rows(self) -> list[dict[str, Any]]:
        """One dict per eigenvalue; for two sets of inputs per pair, averaged over outputs."""
        if self.symmetric:
            fractions = self.eigenvalues / self.eigenvalues.sum()
            columns = zip(self.eigenvalues.tolist(), fractions.tolist(), strict=True)
            return [
                {"rank": rank, "eigenvalue": value, "fraction": fraction}
                for rank, (value, fraction) in enumerate(columns, 1)
            ]
        means = self.matrix
        if self.output == "full":
            means = np.trace(self.matrix, axis1=2, axis2=3) / self.outputs
        return [
            {"row": i, "column": j, "kernel": float(value)}
            for (i, j), value in np.ndenumerate(means)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The eigenvalues by rank; for two sets of inputs the matrix. Returns the Axes."""
        return self._plot_eigenvalues(ax) if self.symmetric else self._plot_matrix(ax)

    def _plot_eigenvalues(self, ax: Any) -> Any:
        from matplotlib.ticker import MaxNLocator

        from deepjax.analysis.plots import COLORS, canvas, plain_log_ticks

        values = self.eigenvalues
        rank, known = np.arange(1, len(values) + 1), values > self.rounding
        with canvas(ax, 5.4, 3.9) as axes:
            axes.set_yscale("log")
            axes.plot(rank[known], values[known], "o-", color=COLORS[0], ms=3.5)
            if not known.all():
                axes.axhline(self.rounding, color="0.5", linestyle="--", linewidth=1)
                label = f"{(~known).sum()} more, below rounding"
                place: dict[str, Any] = {
                    "ha": "right",
                    "va": "bottom",
                    "transform": axes.get_yaxis_transform(),
                }
                axes.text(0.99, self.rounding, label, color="0.4", **place)
            axes.set(title=self._title(), xlabel="rank", ylabel="eigenvalue")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            plain_log_ticks(axes)
        return axes

    def _title(self) -> str:
        from deepjax.analysis.plots import format_number, format_percent

        condition = "singular but for rounding"
        if math.isfinite(self.condition):
            condition = f"condition {format_number(self.condition)}"
        first = format_percent(float(self.eigenvalues[0] / self.eigenvalues.sum()))
        outputs = f"{self.outputs} output{'s' * (self.outputs > 1)}"
        data = f"{self.matrix.shape[0]} examples, {outputs}, {self.parameters:,} parameters"
        return f"Tangent kernel: {condition}, {first} in the first eigenvector\n{data}"

    def _plot_matrix(self, ax: Any) -> Any:
        from deepjax.analysis.plots import canvas, format_number

        matrix = self.flattened
        limit = float(np.abs(matrix).max()) or 1.0
        style: dict[str, Any] = {"cmap": "RdBu_r", "interpolation": "nearest", "aspect": "auto"}
        with canvas(ax, 5.0, 4.2) as axes:
            image = axes.imshow(matrix, vmin=-limit, vmax=limit, **style)
            axes.figure.colorbar(image, ax=axes, shrink=0.85, label="kernel")
            unit = " x output" if self.output == "full" else ""
            mean = format_number(float(matrix.mean()))
            axes.set_title(f"Tangent kernel between two sets: mean {mean}")
            axes.set(xlabel=f"other example{unit}", ylabel=f"example{unit}")
            axes.grid(False)
        return axes


def ntk(
    model: Model,
    variables: Any,
    inputs: Any,
    other: Any = None,
    *,
    output: Output = "mean",
    chunk: int = 16,
    progress: Progress = None,
) -> TangentKernel:
    """The empirical neural tangent kernel in evaluation mode, of the inputs or between two sets.

    inputs, other: an array (n, ...), or a tuple of them; scalars, such as a random key, are shared
    by all examples. The network returns k numbers per example. output: "full" is the inner product
    of the gradients of output a at example i and output b at example j, (n, m, k, k); "trace" its
    sum over a = b, (n, m); "mean" that divided by k. Batch statistics are the running ones: with
    those of a batch an example has no gradient of its own.
    Raises InputError for inputs that do not fit, and unless the network returns one array with a
    row per example. Compiled once for each network, shape and chunk.
    Cost: k backward passes for each example of a pair of chunks; (n / chunk) (m / chunk) pairs,
    half of them without `other`. Memory 2 x chunk x k x parameters: with many outputs use chunk=1.
    Source: Jacot et al. 2018, section 4; Novak et al. 2022, section 3.1 (contraction of Jacobians);
    "mean" as in its library.
    """
    model, variables = entry(model, variables)
    require(output in ("mean", "trace", "full"), "output", output, "'mean', 'trace', 'full'")
    require(
        isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of examples, 1 or more"
    )
    sides = [inputs] if other is None else [inputs, other]
    sizes = [batch_size((side, None)) for side in sides]
    outputs = min(count_outputs(model, variables, side) for side in sides)
    parts = [_split(side, min(chunk, size)) for side, size in zip(sides, sizes, strict=True)]
    rows, columns, symmetric = parts[0], parts[-1], other is None
    pairs = len(rows) * (len(rows) + 1) // 2 if symmetric else len(rows) * len(columns)
    grid: list[list[Any]] = [[None] * len(columns) for _ in rows]
    blocks = _blocks(model, variables, rows, columns, symmetric, output)
    for done, (i, j, block) in enumerate(blocks, 1):
        grid[i][j] = block
        if symmetric and i != j:
            grid[j][i] = _transposed(block)
        if progress:
            progress(done, pairs)
    matrix = np.concatenate([np.concatenate(row, axis=1) for row in grid])
    leaves = jax.tree.leaves(variables["params"])
    single = jax.tree.map(lambda leaf: leaf[:1] if jnp.ndim(leaf) else leaf, rows[0])
    return TangentKernel(
        matrix[: sizes[0], : sizes[-1]],
        output,
        outputs,
        parameters=sum(map(real_count, leaves)),
        symmetric=symmetric,
        eps=float(jnp.finfo(sum_dtype(*leaves)).eps),
        mode=mode_text(model, variables, (single, None), False),
    )


def _blocks(
    model: Model,
    variables: Any,
    rows: list[Any],
    columns: list[Any],
    symmetric: bool,
    output: Output,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(i, j, block) for each pair of chunks; of the upper triangle where it is symmetric."""
    for i, part in enumerate(rows):
        left = _jacobian(model, variables, part)
        for j in range(i if symmetric else 0, len(columns)):
            same = symmetric and j == i
            right = left if same else _jacobian(model, variables, columns[j])
            yield i, j, np.asarray(_contract(left, right, output=output), np.float64)


def _transposed(block: np.ndarray) -> np.ndarray:
    """With rows and columns exchanged, and with the outputs of both where it has these axes."""
    return block.T if block.ndim == 2 else block.transpose(1, 0, 3, 2)


def count_outputs(model: Model, variables: Any, inputs: Any) -> int:
    """How many numbers the network returns per example; raises InputError for wrong inputs."""
    batch_size((inputs, None))
    validate_inputs(model, variables, (inputs, None), _one_array, False)
    return _count_outputs(model, *shapes_of((variables, inputs)))


def _one_array(outputs: Any, batch: Batch) -> Array:
    """A loss of 0; raises InputError unless the network returns one array, a row per example."""
    examples = batch_size(batch)
    fits = (
        isinstance(outputs, Array)
        and jnp.issubdtype(outputs.dtype, jnp.floating)
        and outputs.shape[:1] == (examples,)
    )
    allowed = f"one array of floats, ({examples}, ...): choose by Network(..., output=)"
    require(fits, "the network's output", describe_outputs(outputs), allowed)
    return jnp.zeros(())


@functools.lru_cache(maxsize=256)
def _count_outputs(model: Model, structure: Any, shapes: tuple[Any, ...]) -> int:
    variables, inputs = jax.tree.unflatten(structure, shapes)
    outputs, _ = jax.eval_shape(
        lambda *given: apply_module(model, given[0], (given[1], None), False), variables, inputs
    )
    return outputs.size // outputs.shape[0]


def _split(inputs: Any, size: int) -> list[Any]:
    """Chunks of `size` examples; the last one is padded by repeating its last example."""
    count = batch_size((inputs, None))
    indices = [
        np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)
    ]
    return [jax.tree.map(functools.partial(_take, each), inputs) for each in indices]


def _take(indices: np.ndarray, leaf: Any) -> Any:
    if jnp.ndim(leaf) == 0:
        return leaf
    is_key = isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return (leaf if is_key else np.asarray(leaf))[indices]


@functools.partial(jax.jit, static_argnames=("model",))
def _jacobian(model: Model, variables: Any, inputs: Any) -> list[Array]:
    """(examples, outputs, entries) for each array of parameters."""
    leaves, structure = jax.tree.flatten(inputs)
    axes = [0 if jnp.ndim(leaf) else None for leaf in leaves]

    def one(*example: Any) -> Any:
        rows = [
            leaf if axis is None else leaf[None] for leaf, axis in zip(example, axes, strict=True)
        ]
        single = (jax.tree.unflatten(structure, rows), None)

        def outputs(view: Any) -> Array:
            params = restored(view, variables["params"])
            return widened(
                apply_module(model, {**variables, "params": params}, single, False)[0]
            ).ravel()

        return jax.jacrev(outputs)(as_real(variables["params"]))

    # The default precision of accelerators rounds factors to 8 or 10 bits.
    with jax.default_matmul_precision("highest"):
        found = jax.tree.leaves(jax.vmap(one, in_axes=axes)(*leaves))
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in found]


@functools.partial(jax.jit, static_argnames=("output",))
def _contract(left: list[Array], right: list[Array], *, output: Output) -> Array:
    form = "iap,jbp->ijab" if output == "full" else "iap,jap->ij"
    total = functools.reduce(
        jnp.add,
        [jnp.einsum(form, a, b, precision="highest") for a, b in zip(left, right, strict=True)],
    )
    return total / left[0].shape[1] if output == "mean" else total
