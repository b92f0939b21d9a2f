"""What the instruments should find on the networks of the field, from the call by hand.

Everything is a derivative that JAX takes of `FieldCase.call`; nothing of deepjax is used.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from tests.analysis.field_cases import EXAMPLES, FieldCase, intercepted

KEY = jax.random.key(7)


def flat(case: FieldCase) -> Array:
    return ravel_pytree(case.variables["params"])[0]


def tree(case: FieldCase, vector: Any) -> Any:
    """A vector as a tree like the parameters."""
    return ravel_pytree(case.variables["params"])[1](vector)


def outputs(
    case: FieldCase, vector: Any, batch: Any = None, train: bool = False, key: Array = KEY
) -> Any:
    variables = {**case.variables, "params": tree(case, vector)}
    return case.call(variables, case.batch if batch is None else batch, train, key)


def loss(
    case: FieldCase, vector: Any, batch: Any = None, train: bool = False, key: Array = KEY
) -> Array:
    batch = case.batch if batch is None else batch
    return case.loss(outputs(case, vector, batch, train, key), batch)


def inputs(case: FieldCase) -> Any:
    return case.batch["image"] if isinstance(case.batch, dict) else case.batch[0]


def with_inputs(case: FieldCase, given: Any) -> Any:
    return {"image": given} if isinstance(case.batch, dict) else (given, case.batch[1])


@functools.cache
def loss_and_gradient(case: FieldCase, train: bool = False) -> tuple[float, np.ndarray]:
    value = jax.value_and_grad(functools.partial(loss, case, train=train))
    found, gradient = jax.jit(value)(flat(case))
    return float(found), np.asarray(gradient, float)


@functools.cache
def hessian(case: FieldCase, train: bool = False) -> np.ndarray:
    value = functools.partial(loss, case, train=train)
    return np.asarray(jax.jit(jax.hessian(value))(flat(case)), float)


@functools.cache
def eigenvalues(case: FieldCase) -> np.ndarray:
    return np.linalg.eigvalsh(hessian(case))


def moved(case: FieldCase, *steps: float) -> list[float]:
    """The loss at (1 + step) times the parameters."""
    points = jnp.asarray([1 + step for step in steps])[:, None] * flat(case)[None]
    return jax.jit(jax.vmap(functools.partial(loss, case)))(points).tolist()


@functools.cache
def gradients(case: FieldCase) -> np.ndarray:
    """(examples, parameters); each example has random streams of its own."""

    def one(index: Array, example: Any) -> Array:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        key = jax.random.fold_in(KEY, index)
        return jax.grad(functools.partial(loss, case, batch=alone, key=key))(flat(case))

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(EXAMPLES), case.batch), float)


def covariance(case: FieldCase) -> np.ndarray:
    return np.cov(gradients(case).T)


@functools.cache
def jacobian(case: FieldCase, scale: float = 1.0) -> np.ndarray:
    """(examples, outputs of each, parameters), at a multiple of the parameters."""
    found = jax.jit(jax.jacrev(functools.partial(outputs, case)))(scale * flat(case))
    return np.asarray(found, float).reshape(EXAMPLES, -1, len(flat(case)))


def kernel(case: FieldCase, scale: float = 1.0) -> np.ndarray:
    j = jacobian(case, scale)
    return np.einsum("nap,map->nm", j, j)


def kernel_times_ones(case: FieldCase) -> np.ndarray:
    """The kernel of all outputs of all examples, times a vector of ones."""
    rows = jacobian(case, 1.0)
    rows = rows.reshape(-1, rows.shape[-1])
    return rows @ rows.sum(0)


@functools.cache
def gauss_newton(case: FieldCase) -> np.ndarray:
    """J^T H J, with H the Hessian of the loss with respect to all outputs."""
    found, back = ravel_pytree(outputs(case, flat(case)))
    j = jax.jit(jax.jacrev(lambda vector: ravel_pytree(outputs(case, vector))[0]))(flat(case))
    h = jax.jit(jax.hessian(lambda found: case.loss(back(found), case.batch)))(found)
    j, h = np.asarray(j, float), np.asarray(h, float)
    return j.T @ h @ j


def linearised_outputs(case: FieldCase, step: Any) -> np.ndarray:
    """f(params) + J step."""
    value = functools.partial(outputs, case)
    primal, tangent = jax.jit(lambda p, step: jax.jvp(value, (p,), (step,)))(flat(case), step)
    return np.asarray(primal + tangent, float)


def subspace(case: FieldCase, k: int) -> float:
    """The fraction of the gradient in the directions of the k largest eigenvalues."""
    gradient = loss_and_gradient(case)[1]
    vectors = np.linalg.eigh(hessian(case))[1]
    return float(np.square(vectors[:, -k:].T @ gradient).sum() / np.square(gradient).sum())


def output_sum(found: Any) -> Array:
    """Of all arrays that a network returns."""
    return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(found)), jnp.zeros(()))


def input_gradients(case: FieldCase, given: Any = None) -> np.ndarray:
    """(examples, numbers of an example) of the sum of the outputs."""

    def value(given: Any) -> Array:
        return output_sum(outputs(case, flat(case), with_inputs(case, given)))

    found = jax.tree.leaves(jax.jit(jax.grad(value))(inputs(case) if given is None else given))
    return np.concatenate([np.asarray(leaf, float).reshape(len(leaf), -1) for leaf in found], 1)


def input_cosine(case: FieldCase) -> float:
    """Mean over the pairs of examples."""
    found = input_gradients(case)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    return float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())


def gradient_along_line(case: FieldCase, points: int) -> np.ndarray:
    """From the first example to the second."""
    line = jax.tree.map(lambda leaf: jnp.linspace(leaf[0], leaf[1], points), inputs(case))
    steps = [np.ravel(leaf[1] - leaf[0]) for leaf in jax.tree.leaves(inputs(case))]
    direction = np.concatenate(steps)
    return input_gradients(case, line) @ (direction / np.linalg.norm(direction))


@functools.cache
def layer_outputs(case: FieldCase, layer: str) -> np.ndarray:
    """(calls, ...): the output of each call of the layer.

    Calls inside jax.jvp, which cannot be read, have the inputs of the first. The ensemble's members
    together are the network's output.
    """
    found = _recorded(case, flat(case), layer)
    first = outputs(case, flat(case)) if layer == "members" else found[0]  # inside nn.vmap
    return np.stack([np.asarray(first, float)] * len(found))


def _recorded(case: FieldCase, vector: Any, layer: str, batch: Any = None) -> list[Any]:
    found: list[Any] = []

    def record(path: str, arguments: Any, output: Any) -> Any:
        found.extend([output] * (path == layer))
        return output

    with intercepted(case, record):
        outputs(case, vector, batch)
    return found


def layer_gradients(case: FieldCase, layer: str, value: Any = None) -> np.ndarray:
    """(calls, ...): of the loss, or of a function of the outputs, by the layer's output."""

    def changed(changes: Array) -> Array:
        rest = list(changes)

        def act(path: str, arguments: Any, output: Any) -> Any:
            return output + rest.pop(0) if path == layer else output

        if layer == "members":
            return case.loss(outputs(case, flat(case)) + changes[0], case.batch)
        with intercepted(case, act):
            return value(outputs(case, flat(case))) if value else loss(case, flat(case))

    zeros = jnp.zeros(layer_outputs(case, layer).shape)
    return np.asarray(jax.grad(changed)(zeros), float)


def losses_without(case: FieldCase, layer: str) -> list[float]:
    """The loss where a call of the layer returns its input; calls in a transform count as one."""
    found = _recorded(case, flat(case), layer)
    together = any(isinstance(each, jax.core.Tracer) for each in found)
    losses = []
    for index in range(1 if together else len(found)):
        numbers = itertools.count()

        def act(path: str, arguments: Any, output: Any) -> Any:
            bypassed = path == layer and (together or next(numbers) == index)  # noqa: B023
            return arguments[0] if bypassed else output

        with intercepted(case, act):
            losses.append(float(loss(case, flat(case))))
    return losses


def variance(case: FieldCase, layer: str) -> float:
    """Mean over the channels of the variance over everything else."""
    found = layer_outputs(case, layer)[-1]
    return float(found.reshape(-1, found.shape[-1]).var(0).mean())


def linear_cka(case: FieldCase, layer: str, scale: float) -> float:
    """Kornblith et al. 2019, equation 7: of the layer at two multiples of the parameters."""
    x, y = (
        np.asarray(_recorded(case, factor * flat(case), layer)[0], float).reshape(EXAMPLES, -1)
        for factor in (1.0, scale)
    )
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norms)


def influence(case: FieldCase, layer: str) -> np.ndarray:
    """(height, width): mean absolute gradient of the centre unit of the layer's map."""

    def centre(images: Array) -> Array:
        units = _recorded(case, flat(case), layer, with_inputs(case, images))[-1]
        return jnp.sum(units[:, units.shape[1] // 2, units.shape[2] // 2])

    return np.abs(np.asarray(jax.grad(centre)(inputs(case)), float)).mean((0, 3))


def best_score(case: FieldCase) -> Any:
    """The sum over the examples of the output that is the greatest now."""
    best = jnp.argmax(outputs(case, flat(case)), axis=1)[:, None]
    return lambda found: jnp.sum(jnp.take_along_axis(found, best, axis=1))


def grad_cam_maps(case: FieldCase, layer: str) -> np.ndarray:
    """ReLU of the channels' sum, weighted by the mean gradient of the greatest output."""
    (maps,), (gradient,) = (
        layer_outputs(case, layer),
        layer_gradients(case, layer, best_score(case)),
    )
    return np.maximum((maps * gradient.mean((1, 2), keepdims=True)).sum(-1), 0)


def attributions(case: FieldCase, steps: int) -> list[np.ndarray]:
    """Integrated gradients from 0, of the greatest output, by the rule of Gauss and Legendre."""
    score, leaves = best_score(case), jax.tree.leaves(inputs(case))
    structure = jax.tree.structure(inputs(case))
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def gradient(place: Array) -> list[Array]:
        """Times the inputs of floats, at one place of the line from 0 to them."""

        def moved(changes: list[Array]) -> Array:
            rest = iter(changes)
            given = [
                place * leaf + next(rest) if moves else leaf
                for leaf, moves in zip(leaves, floats, strict=True)
            ]
            batch = with_inputs(case, jax.tree.unflatten(structure, given))
            return score(outputs(case, flat(case), batch))

        own = [leaf for leaf, moves in zip(leaves, floats, strict=True) if moves]
        gradients = jax.grad(moved)(list(map(jnp.zeros_like, own)))
        return [x * each for x, each in zip(own, gradients, strict=True)]

    places, weights = np.polynomial.legendre.leggauss(steps)
    found = jax.jit(jax.vmap(gradient))(jnp.asarray((1 + places) / 2, jnp.float32))
    return [np.einsum("s,s...->...", weights / 2, np.asarray(each, float)) for each in found]


def kernels(case: FieldCase) -> list[np.ndarray]:
    """The parameters of two axes or more that are no biases or scales."""
    return [
        np.asarray(leaf, float)
        for path, leaf in jax.tree_util.tree_leaves_with_path(case.variables["params"])
        if leaf.ndim >= 2 and path[-1].key.split("/")[-1] not in ("bias", "scale")
    ]


def total_norm(arrays: Any) -> float:
    return float(np.sqrt(sum(np.square(np.asarray(each, float)).sum() for each in arrays)))
