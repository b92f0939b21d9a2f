"""The neural tangent kernel of a network: its spectrum, how far it moves in training, and the network that is linear in parameters.

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
from flax import linen as nn
from jax import Array

from deepjax.analysis.batches import batch_size
from deepjax.analysis.forward import Batch, Loss, check, entry, inputs_of, labels_of, run
from deepjax.analysis.params import as_real, check_like, filled, real_count, restored, sum_dtype, widened
from deepjax.errors import InputError, require

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
        require(self.symmetric, "kernel", "between two sets of inputs, which has no eigenvalues", "a kernel of one set")
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
            return [{"rank": rank, "eigenvalue": value, "share": share} for rank, (value, share) in enumerate(columns, 1)]
        each = np.trace(self.matrix, axis1=2, axis2=3) / self.outputs if self.output == "full" else self.matrix
        return [{"row": i, "column": j, "kernel": float(value)} for (i, j), value in np.ndenumerate(each)]

    def plot(self, ax: Any = None) -> Any:
        """The eigenvalues by rank; of a kernel between two sets the matrix. Returns the matplotlib Axes."""
        from deepjax.analysis.landscape_figures import draw_kernel

        return draw_kernel(self, ax)


def ntk(
    model: nn.Module,
    variables: Any,
    inputs: Any,
    other: Any = None,
    *,
    output: Output = "mean",
    chunk: int = 16,
    progress: Progress = None,
) -> Kernel:
    """The empirical neural tangent kernel of the network in evaluation, between the inputs, or between them and others.

    inputs, other: an array (n, ...), or a tuple of them. The network returns k numbers an example. "full": the inner product of
    the gradients of output a at example i and output b at example j, (n, m, k, k); "trace": the sum over a = b, (n, m); "mean":
    that divided by k. Batch statistics are the running ones: with a batch's own an example would have no gradient of its own.
    Raises InputError for inputs that do not fit, and outputs that are not one array with a row an example.
    Compiled once for a network, shape and chunk. Cost: k backward passes for each example of a pair of chunks, in (n / chunk)
    (m / chunk) pairs, half of them without `other`; memory 2 x chunk x k x parameters: of many outputs, take a chunk of 1.
    Source: Jacot et al. 2018, section 4; Novak et al. 2022, section 3.1 (contraction of Jacobians), the mean as in its library.
    """
    model, variables = entry(model, variables)
    require(output in ("mean", "trace", "full"), "output", output, "'mean', 'trace', 'full'")
    require(isinstance(chunk, int) and chunk >= 1, "chunk", chunk, "a number of examples, 1 or more")
    sides = [inputs] if other is None else [inputs, other]
    sizes = [batch_size((side, None)) for side in sides]
    outputs = min(_outputs(model, variables, side) for side in sides)
    rows, columns = (_cut(side, min(chunk, size)) for side, size in ((sides[0], sizes[0]), (sides[-1], sizes[-1])))
    blocks: list[list[Any]] = [[None] * len(columns) for _ in rows]
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(columns)) if other is not None or i <= j]
    at, left = -1, None
    for done, (i, j) in enumerate(pairs, 1):
        if at != i:
            at, left = i, _jacobian(model, variables, rows[i])
        right = left if other is None and i == j else _jacobian(model, variables, columns[j])
        blocks[i][j] = np.asarray(_contract(left, right, output=output), np.float64)
        if other is None and i != j:
            blocks[j][i] = blocks[i][j].swapaxes(0, 1).swapaxes(-1, -2) if output == "full" else blocks[i][j].T
        if progress:
            progress(done, len(pairs))
    matrix = np.concatenate([np.concatenate(row, axis=1) for row in blocks])[: sizes[0], : sizes[-1]]
    leaves = jax.tree.leaves(variables["params"])
    eps = float(jnp.finfo(sum_dtype(*leaves)).eps)
    return Kernel(matrix, output, outputs, sum(map(real_count, leaves)), other is None, eps)


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
        return [{"drift": self.drift, "alignment": self.alignment, "growth": self.growth, "examples": len(self.kernel_0.matrix)}]

    def plot(self, ax: Any = None) -> Any:
        """Every entry of K_t against that of K_0; returns the matplotlib Axes."""
        from deepjax.analysis.landscape_figures import draw_drift

        return draw_drift(self, ax)


def kernel_drift(
    model: nn.Module,
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
    for variables in (variables_0, variables_t):
        require("params" in variables, "variables", f"with {sorted(variables)}", "with the collection 'params'")
    check_like("variables_t", variables_t["params"], variables_0["params"])
    halves = [progress and functools.partial(_half, progress, which) for which in (0, 1)]
    first, last = (
        ntk(model, variables, inputs, output=output, chunk=chunk, progress=half)
        for variables, half in zip((variables_0, variables_t), halves, strict=True)
    )
    norm_0, norm_t = (float(np.linalg.norm(kernel.matrix)) for kernel in (first, last))
    require(norm_0 > 0 and norm_t > 0, "kernel", "0 everywhere", "a network whose outputs move with its parameters")
    alignment = float(np.vdot(first.matrix, last.matrix)) / (norm_0 * norm_t)
    return Drift(float(np.linalg.norm(last.matrix - first.matrix)) / norm_0, alignment, norm_t / norm_0, first, last)


def linearised(model: nn.Module, variables: Any) -> Callable[[Any, Any], Array]:
    """The network's first Taylor polynomial in its parameters: a function (params, inputs) -> outputs.

    f(params_0) + J (params - params_0), in evaluation, with params_0 and J those of `variables`.
    The function raises InputError for parameters or inputs that do not fit. Cost of a call: one forward and about two backward
    passes, differentiable and compiled once for a network and shape. Source: Lee et al. 2019, equation 8.
    """
    model, variables = entry(model, variables)

    def function(params: Any, inputs: Any) -> Array:
        params = filled(variables["params"], check_like("params", params, variables["params"]))
        _outputs(model, variables, inputs)
        return _linear(model, variables, params, inputs)

    return function


def squared(outputs: Array, batch: Batch) -> Array:
    """Half the squared distance of outputs and labels, mean over examples; integer labels stand for one-hot rows."""
    labels = labels_of(batch)
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == outputs.shape[:-1]:
        labels = jax.nn.one_hot(labels, outputs.shape[-1])
    require(
        labels.shape == outputs.shape, "labels", f"of shape {labels.shape}", f"{outputs.shape}, or integers {outputs.shape[:-1]}"
    )
    outputs = widened(outputs)
    return jnp.sum(jnp.square(outputs - labels.astype(outputs.dtype))) / (2 * outputs.shape[0])


@dataclasses.dataclass(frozen=True, eq=False)
class LinearisedRun:
    """A network and its linearisation, trained side by side from the same parameters."""

    learning_rate: float
    examples: int
    loss: np.ndarray
    """(steps + 1,): of the network, before the first step and after each."""
    loss_linear: np.ndarray
    """(steps + 1,)"""
    rmse: np.ndarray
    """(steps + 1,): root of the mean squared difference of both outputs, over examples and outputs."""
    moved: np.ndarray
    """(steps + 1,): the same between the network's outputs and those it began with: what `rmse` is to be seen against."""
    params: Any
    """Of the network, after the last step."""
    params_linear: Any

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a step."""
        names = ("loss", "loss_linear", "rmse", "moved")
        columns = zip(*(getattr(self, name).tolist() for name in names), strict=True)
        return [{"step": step, **dict(zip(names, row, strict=True))} for step, row in enumerate(columns)]

    def plot(self, ax: Any = None) -> Any:
        """Difference of the outputs and how far they moved, by step; returns the matplotlib Axes."""
        from deepjax.analysis.landscape_figures import draw_linearised

        return draw_linearised(self, ax)


def linearised_training(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    *,
    steps: int,
    learning_rate: float,
    loss: Loss = squared,
    progress: Progress = None,
) -> LinearisedRun:
    """Full-batch gradient descent on the network and on its linearisation, and how far their outputs come apart.

    Both in evaluation: running statistics, no dropout. With `squared` the linear one decays along the full kernel's eigenvectors at
    rates learning_rate x eigenvalue / examples, and diverges where that is above 2.
    Raises InputError for a batch that does not fit, steps below 1, and where a loss is not finite on the way.
    Cost: about six passes over the batch a step; memory as training, and three times the parameters. Compiled once for a network,
    loss and shape. Source: Lee et al. 2019, sections 2.2 and 3 (its Figure 4 shows this RMSE).
    """
    model, variables = entry(model, variables)
    require(isinstance(steps, int) and steps >= 1, "steps", steps, "1 or more")
    require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
    check(model, variables, batch, loss, False)
    _outputs(model, variables, inputs_of(batch))
    state, found = (variables["params"], variables["params"]), []
    rate = np.asarray(learning_rate, sum_dtype(*jax.tree.leaves(state)))
    for step in range(steps + 1):
        final = state
        state, numbers = _descend(state, variables, batch, rate, model=model, loss=loss)
        found.append(numbers)
        if progress and step:
            jax.block_until_ready(numbers)
            progress(step, steps)
    columns = np.array(jax.device_get(found), float).T
    wrong = ~np.isfinite(columns).all(0)
    if wrong.any():
        raise InputError(
            f"learning_rate is {learning_rate}; allowed: smaller ones, for at step {wrong.argmax()} a loss is not finite"
        )
    return LinearisedRun(learning_rate, batch_size(batch), *columns, *final)


def _half(progress: Callable[[int, int], None], which: int, done: int, total: int) -> None:
    progress(which * total + done, 2 * total)


def _outputs(model: nn.Module, variables: Any, inputs: Any) -> int:
    """How many numbers the network returns for an example; raises InputError where it cannot take the inputs."""
    batch = (inputs, None)
    examples = batch_size(batch)

    def one_array(outputs: Any, _: Any) -> Array:
        given = f"{jax.tree.map(jnp.shape, outputs)}"
        fits = isinstance(outputs, Array) and jnp.issubdtype(outputs.dtype, jnp.floating) and outputs.shape[:1] == (examples,)
        require(fits, "the network's output", given, f"one array of floats, ({examples}, ...)")
        sizes.append(outputs.size // examples)
        return jnp.zeros(())

    sizes: list[int] = []
    check(model, variables, batch, one_array, False)
    return sizes[0]


def _cut(inputs: Any, size: int) -> list[Any]:
    """Parts of `size` examples, the last filled up with its last one, so that all have one shape."""
    leaves = jax.tree.map(np.asarray, inputs)
    count = jax.tree.leaves(leaves)[0].shape[0]
    places = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
    return [jax.tree.map(lambda leaf, place=place: leaf[place], leaves) for place in places]


@functools.partial(jax.jit, static_argnames=("model",))
def _jacobian(model: nn.Module, variables: Any, inputs: Any) -> list[Array]:
    """(examples, outputs, entries) of each array of parameters."""

    def one(example: Any) -> Any:
        single = (jax.tree.map(lambda leaf: leaf[None], example), None)

        def outputs(view: Any) -> Array:
            params = restored(view, variables["params"])
            return widened(run(model, {**variables, "params": params}, single, False)[0]).ravel()

        return jax.jacrev(outputs)(as_real(variables["params"]))

    with jax.default_matmul_precision("highest"):  # elsewhere than on CPUs the default rounds factors to 8 or 10 bits
        found = jax.tree.leaves(jax.vmap(one)(inputs))
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in found]


@functools.partial(jax.jit, static_argnames=("output",))
def _contract(left: list[Array], right: list[Array], *, output: Output) -> Array:
    form = "iap,jbp->ijab" if output == "full" else "iap,jap->ij"
    total = functools.reduce(jnp.add, [jnp.einsum(form, a, b, precision="highest") for a, b in zip(left, right, strict=True)])
    return total / left[0].shape[1] if output == "mean" else total


def _taylor(model: nn.Module, variables: Any, params: Any, inputs: Any) -> tuple[Array, Array, Callable[[Array], Any]]:
    """(outputs at the variables, the change that is linear in params, and J^T)."""
    own = variables["params"]

    def outputs(view: Any) -> Array:
        return run(model, {**variables, "params": restored(view, own)}, (inputs, None), False)[0]

    view = as_real(own)
    value, pull = jax.vjp(outputs, view)
    step = jax.tree.map(lambda new, old: new.astype(old.dtype) - old, as_real(params), view)
    # J v as the transpose of u -> J^T u: jax.jvp refuses networks with a custom_vjp.
    (moved,) = jax.vjp(lambda cotangent: pull(cotangent)[0], value)[1](step)
    return value, moved, lambda cotangent: pull(cotangent)[0]


@functools.partial(jax.jit, static_argnames=("model",))
def _linear(model: nn.Module, variables: Any, params: Any, inputs: Any) -> Array:
    with jax.default_matmul_precision("highest"):
        value, moved, _ = _taylor(model, variables, params, inputs)
    return value + moved


@functools.partial(jax.jit, static_argnames=("model", "loss"))
def _descend(state: Any, variables: Any, batch: Batch, rate: Any, *, model: nn.Module, loss: Loss) -> tuple[Any, tuple[Array, ...]]:
    """Both parameters after a step, and before it (loss, the linear network's, their outputs' RMSE, how far outputs moved)."""
    views = as_real(state[0]), as_real(state[1])

    def value(view: Any) -> tuple[Array, Array]:
        outputs = run(model, {**variables, "params": restored(view, state[0])}, batch, False)[0]
        return loss(outputs, batch), outputs

    with jax.default_matmul_precision("highest"):
        (value_full, outputs), gradient = jax.value_and_grad(value, has_aux=True)(views[0])
        start, moved, pull = _taylor(model, variables, state[1], inputs_of(batch))
        value_linear, cotangent = jax.value_and_grad(lambda outputs: loss(outputs, batch))(start + moved)
        gradients = (gradient, pull(cotangent))
    later = jax.tree.map(lambda old, slope: old - rate * slope, views, gradients)
    return restored(later, state), (value_full, value_linear, _rms(outputs - start - moved), _rms(outputs - start))


def _rms(values: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(widened(values))))
