"""The neural tangent kernel of a network: its spectrum, and how far it moves in training.

Jacot, Gabriel and Hongler, "Neural tangent kernel", 2018 (arXiv:1806.07572). Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein
and Pennington, "Wide neural networks of any depth evolve as linear models under gradient descent", 2019 (arXiv:1902.06720).
Novak, Sohl-Dickstein and Schoenholz, "Fast finite width neural tangent kernel", 2022 (arXiv:2206.08720).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.batch import batch_size
from deepjax.analysis.core.module import (
    Batch,
    Model,
    described,
    entry,
    mode_text,
    run,
    shapes_of,
    validate_inputs,
)
from deepjax.analysis.core.params import (
    as_real,
    check_like,
    real_count,
    restored,
    sum_dtype,
    widened,
)
from deepjax.errors import require

Output = Literal["mean", "trace", "full"]
Progress = Callable[[int, int], None] | None
"""Called with (parts done, parts in all)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """The empirical neural tangent kernel: inner products of the gradients of a network's outputs at pairs of inputs."""

    matrix: np.ndarray
    """(n, m), or (n, m, k, k) with output="full"; float64, computed in float32, or float64 where the parameters are."""
    output: Output
    outputs: int
    """k: numbers that the network returns for an example."""
    parameters: int
    """Real numbers, two for a complex parameter."""
    symmetric: bool
    """Whether both sides are the same inputs, so that there are eigenvalues."""
    eps: float
    """Relative rounding of the dtype that it was computed in."""
    mode: str
    """How the network was set to evaluation, and what it draws and writes even so."""

    @property
    def square(self) -> np.ndarray:
        """As a matrix of rows and columns: (n, m), or (n k, m k), in which an example's outputs are next to each other."""
        if self.output != "full":
            return self.matrix
        n, m, k, _ = self.matrix.shape
        return self.matrix.transpose(0, 2, 1, 3).reshape(n * k, m * k)

    @functools.cached_property
    def eigenvalues(self) -> np.ndarray:
        """(n,) or (n k,), largest first; raises InputError for a kernel between two sets of inputs."""
        require(
            self.symmetric,
            "kernel",
            "between two sets of inputs, which has no eigenvalues",
            "a kernel of one set",
        )
        return np.linalg.eigvalsh(self.square)[::-1]

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; infinite where the smallest is within rounding of 0.

        Gradient descent needs about so many steps for the slowest direction (Xiao et al. 2020, arXiv:1912.13053, section 2).
        """
        values = self.eigenvalues
        return float(values[0] / values[-1]) if values[-1] > self.rounding else math.inf

    @property
    def rounding(self) -> float:
        """Eigenvalues up to here may be 0, but for rounding."""
        return len(self.eigenvalues) * self.eps * float(self.eigenvalues[0])

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict an eigenvalue; of a kernel between two sets a dict a pair of examples, with the mean over outputs."""
        if self.symmetric:
            shares = self.eigenvalues / self.eigenvalues.sum()
            columns = zip(self.eigenvalues.tolist(), shares.tolist(), strict=True)
            return [
                {"rank": rank, "eigenvalue": value, "share": share}
                for rank, (value, share) in enumerate(columns, 1)
            ]
        each = (
            np.trace(self.matrix, axis1=2, axis2=3) / self.outputs
            if self.output == "full"
            else self.matrix
        )
        return [
            {"row": i, "column": j, "kernel": float(value)}
            for (i, j), value in np.ndenumerate(each)
        ]

    def plot(self, ax: Any = None) -> Any:
        """The eigenvalues by rank; of a kernel between two sets the matrix. Returns the matplotlib Axes."""
        from deepjax.analysis.landscape.landscape_figures import draw_kernel

        return draw_kernel(self, ax)


def ntk(
    model: Model,
    variables: Any,
    inputs: Any,
    other: Any = None,
    *,
    output: Output = "mean",
    chunk: int = 16,
    progress: Progress = None,
) -> Kernel:
    """The empirical neural tangent kernel of the network in evaluation, between the inputs, or between them and others.

    inputs, other: an array (n, ...), or a tuple of them; a scalar, such as a random key, belongs to all examples. The network
    returns k numbers an example. "full": the inner product of the gradients of output a at example i and output b at example j,
    (n, m, k, k); "trace": the sum over a = b, (n, m); "mean": that divided by k.
    Batch statistics are the running ones: with a batch's own an example would have no gradient of its own.
    Raises InputError for inputs that do not fit, and outputs that are not one array with a row an example.
    Compiled once for a network, shape and chunk. Cost: k backward passes for each example of a pair of chunks, in (n / chunk)
    (m / chunk) pairs, half of them without `other`; memory 2 x chunk x k x parameters: of many outputs, take a chunk of 1.
    Source: Jacot et al. 2018, section 4; Novak et al. 2022, section 3.1 (contraction of Jacobians), the mean as in its library.
    """
    model, variables = entry(model, variables)
    require(output in ("mean", "trace", "full"), "output", output, "'mean', 'trace', 'full'")
    require(
        isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of examples, 1 or more"
    )
    sides = [inputs] if other is None else [inputs, other]
    sizes = [batch_size((side, None)) for side in sides]
    outputs = min(outputs_of(model, variables, side) for side in sides)
    rows, columns = (
        _cut(side, min(chunk, size))
        for side, size in ((sides[0], sizes[0]), (sides[-1], sizes[-1]))
    )
    blocks: list[list[Any]] = [[None] * len(columns) for _ in rows]
    pairs = [
        (i, j) for i in range(len(rows)) for j in range(len(columns)) if other is not None or i <= j
    ]
    at, left = -1, None
    for done, (i, j) in enumerate(pairs, 1):
        if at != i:
            at, left = i, _jacobian(model, variables, rows[i])
        right = left if other is None and i == j else _jacobian(model, variables, columns[j])
        blocks[i][j] = np.asarray(_contract(left, right, output=output), np.float64)
        if other is None and i != j:
            blocks[j][i] = (
                blocks[i][j].swapaxes(0, 1).swapaxes(-1, -2) if output == "full" else blocks[i][j].T
            )
        if progress:
            progress(done, len(pairs))
    matrix = np.concatenate([np.concatenate(row, axis=1) for row in blocks])[
        : sizes[0], : sizes[-1]
    ]
    leaves = jax.tree.leaves(variables["params"])
    eps = float(jnp.finfo(sum_dtype(*leaves)).eps)
    single = jax.tree.map(lambda leaf: leaf[:1] if jnp.ndim(leaf) else leaf, rows[0])  # as it runs
    mode = mode_text(model, variables, (single, None), False)
    return Kernel(matrix, output, outputs, sum(map(real_count, leaves)), other is None, eps, mode)


@dataclasses.dataclass(frozen=True, eq=False)
class Drift:
    """How far a network's kernel moved: 0 would be training as with a fixed kernel, that of the network linear in parameters."""

    drift: float
    """|K_t - K_0| / |K_0|, Frobenius norms."""
    alignment: float
    """Cosine of K_t and K_0 as vectors: 1 where the kernel only grew."""
    growth: float
    """|K_t| / |K_0|."""
    kernel_0: Kernel
    kernel_t: Kernel

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict of the numbers."""
        return [
            {
                "drift": self.drift,
                "alignment": self.alignment,
                "growth": self.growth,
                "examples": len(self.kernel_0.matrix),
            }
        ]

    def plot(self, ax: Any = None) -> Any:
        """Every entry of K_t against that of K_0; returns the matplotlib Axes."""
        from deepjax.analysis.landscape.landscape_figures import draw_drift

        return draw_drift(self, ax)


def kernel_drift(
    model: Model,
    variables_0: Any,
    variables_t: Any,
    inputs: Any,
    *,
    output: Output = "mean",
    chunk: int = 16,
    progress: Progress = None,
) -> Drift:
    """The relative change of the kernel between two moments of a network, and the alignment of both kernels.

    Arguments and errors as of `ntk`, and for variables of different shapes; cost twice as much.
    Source: Lee et al. 2019, section 2.2 and Figure 1; alignment, Fort et al. 2020 (arXiv:2010.15110), section 2.
    """
    model, variables_0 = entry(model, variables_0)
    model, variables_t = entry(model, variables_t)
    check_like("variables_t", variables_t["params"], variables_0["params"])
    halves = [progress and functools.partial(_half, progress, which) for which in (0, 1)]
    first, last = (
        ntk(model, variables, inputs, output=output, chunk=chunk, progress=half)
        for variables, half in zip((variables_0, variables_t), halves, strict=True)
    )
    norm_0, norm_t = (float(np.linalg.norm(kernel.matrix)) for kernel in (first, last))
    require(
        norm_0 > 0 and norm_t > 0,
        "kernel",
        "0 everywhere",
        "a network whose outputs move with its parameters",
    )
    alignment = float(np.vdot(first.matrix, last.matrix)) / (norm_0 * norm_t)
    return Drift(
        float(np.linalg.norm(last.matrix - first.matrix)) / norm_0,
        alignment,
        norm_t / norm_0,
        first,
        last,
    )


def _half(progress: Callable[[int, int], None], which: int, done: int, total: int) -> None:
    progress(which * total + done, 2 * total)


def outputs_of(model: Model, variables: Any, inputs: Any) -> int:
    """How many numbers the network returns for an example; raises InputError where it cannot take the inputs."""
    batch_size((inputs, None))
    validate_inputs(model, variables, (inputs, None), _one_array, False)
    return _outputs_of(model, *shapes_of((variables, inputs)))


def _one_array(outputs: Any, batch: Batch) -> Array:
    """0, as a loss, where the network returns one array with a row an example."""
    examples = batch_size(batch)
    fits = (
        isinstance(outputs, Array)
        and jnp.issubdtype(outputs.dtype, jnp.floating)
        and outputs.shape[:1] == (examples,)
    )
    allowed = f"one array of floats, ({examples}, ...): choose by Network(..., output=)"
    require(fits, "the network's output", described(outputs), allowed)
    return jnp.zeros(())


@functools.lru_cache(maxsize=256)
def _outputs_of(model: Model, structure: Any, shapes: tuple[Any, ...]) -> int:
    variables, inputs = jax.tree.unflatten(structure, shapes)
    outputs, _ = jax.eval_shape(
        lambda *given: run(model, given[0], (given[1], None), False), variables, inputs
    )
    return outputs.size // outputs.shape[0]


def _cut(inputs: Any, size: int) -> list[Any]:
    """Parts of `size` examples, the last filled up with its last one, so that all have one shape."""
    count = batch_size((inputs, None))
    places = [
        np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)
    ]
    return [jax.tree.map(functools.partial(_taken, place), inputs) for place in places]


def _taken(place: np.ndarray, leaf: Any) -> Any:
    is_key = isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if jnp.ndim(leaf) == 0 else (leaf if is_key else np.asarray(leaf))[place]


@functools.partial(jax.jit, static_argnames=("model",))
def _jacobian(model: Model, variables: Any, inputs: Any) -> list[Array]:
    """(examples, outputs, entries) of each array of parameters."""
    leaves, structure = jax.tree.flatten(inputs)
    axes = [0 if jnp.ndim(leaf) else None for leaf in leaves]

    def one(*example: Any) -> Any:
        rows = [
            leaf if axis is None else leaf[None] for leaf, axis in zip(example, axes, strict=True)
        ]
        single = (jax.tree.unflatten(structure, rows), None)

        def outputs(view: Any) -> Array:
            params = restored(view, variables["params"])
            return widened(run(model, {**variables, "params": params}, single, False)[0]).ravel()

        return jax.jacrev(outputs)(as_real(variables["params"]))

    with jax.default_matmul_precision(
        "highest"
    ):  # elsewhere than on CPUs the default rounds factors to 8 or 10 bits
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
