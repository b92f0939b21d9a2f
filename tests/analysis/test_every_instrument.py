"""Every instrument on every form of network, batch and transform.

Each cell equals what jax.grad, jax.hessian or NumPy compute from the function in `forms.py`, or is
a refusal, which `REFUSED` lists with its reason. `make test` runs every pair of values of any two
factors, `make test-slow` the full product.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import deepjax.analysis as instruments
from deepjax.errors import InputError
from tests.analysis.forms import (
    BATCHES,
    BLOCKS,
    FORMS,
    SHAPE,
    TRANSFORMS,
    Case,
    case,
    data,
    forward,
    numbers,
)

IMAGES, LABELS = data()
FLAT, UNRAVEL = ravel_pytree(numbers())


def losses(flat: jax.Array, images: jax.Array = IMAGES) -> jax.Array:
    """(examples,)"""
    logits = jax.nn.log_softmax(forward(UNRAVEL(flat), images))
    return -logits[jnp.arange(len(LABELS)), LABELS]


@functools.cache
def hessian() -> np.ndarray:
    return np.asarray(jax.hessian(lambda flat: losses(flat).mean())(FLAT), float)


@functools.cache
def gradients() -> np.ndarray:
    """(examples, parameters)"""
    return np.asarray(jax.jacrev(losses)(FLAT), float)


@functools.cache
def jacobian() -> np.ndarray:
    """(examples, logits, parameters)"""
    return np.asarray(jax.jacrev(lambda flat: forward(UNRAVEL(flat), IMAGES))(FLAT), float)


@functools.cache
def gauss_newton() -> np.ndarray:
    p = np.asarray(jax.nn.softmax(forward(numbers(), IMAGES)), float)
    inner = np.einsum("na,ab->nab", p, np.eye(p.shape[1])) - np.einsum("na,nb->nab", p, p)
    return np.einsum("nap,nab,nbq->pq", jacobian(), inner, jacobian()) / len(p)


def full_kernel() -> np.ndarray:
    """(examples x logits, examples x logits)"""
    rows = jacobian().reshape(-1, FLAT.size)
    return rows @ rows.T


def moved(step: float) -> jax.Array:
    """The loss at (1 + step) times the parameters."""
    return losses(FLAT * (1 + step)).mean()


def spectrum(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(matrix)[::-1][:3]


@functools.cache
def blocks() -> list[np.ndarray]:
    """The outputs of the stem and of the residual blocks."""
    p, found = numbers(), []
    x = jnp.matmul(IMAGES, p["stem"]["kernel"][0, 0]) + p["stem"]["bias"][None, None, None]
    found.append(np.asarray(x, float))
    for index in range(BLOCKS):
        layer = p[f"block{index}"]["conv"]
        branch = jnp.tanh(jnp.matmul(x, layer["kernel"][0, 0]) + layer["bias"][None, None, None])
        x = x + branch
        found.append(np.asarray(x, float))
    return found


def without(index: int) -> float:
    """The loss without the branch of one block: its kernel and bias are 0, and tanh(0) is 0."""
    params = numbers()
    params[f"block{index}"] = jax.tree.map(jnp.zeros_like, params[f"block{index}"])
    return float(losses(ravel_pytree(params)[0]).mean())


def input_cosines() -> float:
    """Mean over pairs of examples of the cosine of the gradients of the summed logits."""
    grads = np.asarray(jax.grad(lambda x: forward(numbers(), x).sum())(IMAGES), float).reshape(
        8, -1
    )
    unit = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(8, 1)]
    return float(np.abs(cosines).mean())


Numbers = Callable[[], Any]
ARGUMENTS = ("network", "variables", "batch")
i = instruments


def by(name: str, *extra: Any, **options: Any) -> Callable[[Case], Any]:
    """The call of an instrument on a case."""
    return lambda c: getattr(i, name)(c.network, c.variables, c.batch, *extra, **options)


def operator(name: str) -> tuple[Callable[[Case], Any], Numbers]:
    wanted: dict[str, Callable[[], np.ndarray]] = {
        "hessian": hessian,
        "gauss_newton": gauss_newton,
        "fisher": gauss_newton,
        "empirical_fisher": lambda: gradients().T @ gradients() / 8,
        "gradient_covariance": lambda: np.cov(gradients().T),
    }
    return lambda c: spectrum(by(name)(c).todense()), lambda: spectrum(wanted[name]())


def params_of(c: Case) -> Any:
    return c.variables["params"] if c.form != "function" else c.variables


def vector_of(c: Case) -> Any:
    return jax.tree.map(jnp.ones_like, params_of(c))


def length(tree: Any) -> float:
    return float(np.linalg.norm(ravel_pytree(tree)[0]))


def scaled(c: Case, factor: float) -> Any:
    params = jax.tree.map(lambda leaf: factor * leaf, params_of(c))
    return params if c.form == "function" else {"params": params}


def products(matrix: Callable[[], np.ndarray]) -> Numbers:
    return lambda: float(np.linalg.norm(matrix() @ np.ones(len(FLAT))))


def gradient_norm() -> float:
    return float(np.linalg.norm(gradients().mean(0)))


CALLS: dict[str, tuple[Callable[[Case], Any], Numbers]] = {
    "trace": (
        lambda c: [by("trace")(c).loss, by("trace")(c).summary()["gradient norm"]],
        lambda: [float(losses(FLAT).mean()), gradient_norm()],
    ),
    "taps": (
        lambda c: length(by("taps", ["stem"])(c)["stem"].activation),
        lambda: float(np.linalg.norm(blocks()[0])),
    ),
    "first_nonfinite_layer": (lambda c: by("first_nonfinite_layer")(c) is None, lambda: True),
    **{
        name: operator(name)
        for name in ("hessian", "gauss_newton", "fisher", "empirical_fisher", "gradient_covariance")
    },
    "hvp": (lambda c: length(by("hvp", vector_of(c))(c)), products(hessian)),
    "gnvp": (lambda c: length(by("gnvp", vector_of(c))(c)), products(gauss_newton)),
    "top_eigenvalues": (
        lambda c: by("top_eigenvalues", 3, which="largest", steps=40)(c).values,
        lambda: spectrum(hessian()),
    ),
    "spectral_density": (
        lambda c: by("spectral_density", steps=40, probes=1)(c).lambda_max,
        lambda: spectrum(hessian())[0],
    ),
    "hessian_trace": (
        lambda c: within(by("hessian_trace", probes=20)(c), np.trace(hessian())),
        lambda: True,
    ),
    "gradient_subspace_overlap": (
        lambda c: by("gradient_subspace_overlap", 2, steps=40)(c).fraction,
        lambda: subspace(2),
    ),
    "per_example_gradients": (
        lambda c: [
            sum(row.variance for row in by("per_example_gradients")(c).layers),
            np.sqrt(sum(row.mean_norm**2 for row in by("per_example_gradients")(c).layers)),
        ],
        lambda: [np.trace(np.cov(gradients().T)), gradient_norm()],
    ),
    "noise_scale": (
        lambda c: by("noise_scale", small=1)(c).trace_sigma - traces_of_batches(c),
        lambda: 0.0,
    ),
    "shattering": (lambda c: by("shattering")(c).cosine, input_cosines),
    "loss_line": (
        lambda c: by("loss_line", params_of(c), alphas=[0.0, 0.5])(c).loss,
        lambda: [moved(0.0), moved(0.5)],
    ),
    "loss_plane": (
        lambda c: by("loss_plane", params_of(c), vector_of(c), grid=GRID)(c).loss[1],
        lambda: [moved(-0.5), moved(0.0), moved(0.5)],
    ),
    "linear_interpolation": (
        lambda c: (
            i.linear_interpolation(
                c.network, c.variables, scaled(c, 2.0), c.batch, alphas=[0.0, 0.5, 1.0]
            ).loss
        ),
        lambda: [moved(0.0), moved(0.5), moved(1.0)],
    ),
    "ntk": (
        lambda c: spectrum(by("ntk", output="trace")(c).matrix),
        lambda: spectrum(np.einsum("nap,map->nm", jacobian(), jacobian())),
    ),
    "ntk_operator": (
        lambda c: spectrum(by("ntk_operator", chunk=3)(c).todense()),
        lambda: spectrum(full_kernel()),
    ),
    "kernel_drift": (
        lambda c: i.kernel_drift(c.network, c.variables, c.variables, c.batch).drift,
        lambda: 0.0,
    ),
    "linearised_training": (
        lambda c: by("linearised_training", steps=1, learning_rate=1e-3)(c).loss[0],
        lambda: half_mse(),
    ),
    "lesions": (
        lambda c: [lesion.loss for lesion in by("lesions")(c).blocks],
        lambda: [without(index) for index in range(BLOCKS)],
    ),
    "path_lengths": (
        lambda c: by("path_lengths")(c).gradient_norm,
        lambda: input_gradient(),
    ),
    "signal_propagation": (
        lambda c: [block.variance for block in by("signal_propagation")(c).blocks],
        lambda: [float(x.var((0, 1, 2)).mean()) for x in blocks()[1:]],
    ),
    "effective_field": (lambda c: by("effective_field", layers="stem")(c).size, lambda: 1.0),
    "cost": (lambda c: i.cost(c.network, SHAPE).total.macs, lambda: macs()),
    "count_params": (lambda c: i.count_params(c.network, SHAPE), lambda: len(FLAT)),
}
GRID = ([-0.5, 0.0, 0.5], [-1.0, 0.0, 1.0])


def within(found: Any, wanted: float) -> bool:
    """Whether an estimate is within four standard errors."""
    return bool(abs(found.trace - wanted) < 4 * found.error)


def traces_of_batches(c: Case) -> float:
    """The mean over the batches of the trace of the gradients' covariance."""
    parts = np.split(gradients(), 2 if c.batch_form == "list" else 1)
    return float(np.mean([np.trace(np.cov(part.T)) for part in parts]))


def subspace(k: int) -> float:
    gradient = gradients().mean(0)
    _, vectors = np.linalg.eigh(hessian())
    return float(np.square(vectors[:, -k:].T @ gradient).sum() / np.square(gradient).sum())


def half_mse() -> float:
    logits = np.asarray(forward(numbers(), IMAGES), float)
    return float(0.5 * np.square(logits - np.eye(3)[np.asarray(LABELS)]).sum(1).mean())


def input_gradient() -> float:
    return float(np.linalg.norm(jax.grad(lambda x: losses(FLAT, x).mean())(IMAGES)))


def macs() -> int:
    return 16 * (2 * 3 + BLOCKS * 3 * 3) + 3 * 3


REFUSED: dict[tuple[str, str, str], str] = {
    **{
        (name, "function", "*"): "which has no layers"
        for name in (
            "taps",
            "lesions",
            "path_lengths",
            "signal_propagation",
            "effective_field",
        )
    },
    **{
        (name, form, "scan"): "inside nn.scan"
        for name in ("lesions", "path_lengths", "signal_propagation")
        for form in ("linen", "nnx")
    },
}
"""(instrument, form, transform) -> part of the message; "*" for every transform."""


FACTORS = (tuple(CALLS), FORMS, TRANSFORMS, BATCHES)
PRODUCT = list(itertools.product(*FACTORS))


def pairwise() -> list[tuple[str, ...]]:
    """Cells that contain every pair of values of any two factors, by a greedy choice."""
    pairs = {
        (a, b, x, y)
        for a, b in itertools.combinations(range(len(FACTORS)), 2)
        for x in FACTORS[a]
        for y in FACTORS[b]
    }
    chosen = []
    while pairs:
        cell = max(PRODUCT, key=lambda cell: len(pairs & pairs_of(cell)))
        chosen.append(cell)
        pairs -= pairs_of(cell)
    return chosen


def pairs_of(cell: tuple[str, ...]) -> set[tuple[Any, ...]]:
    return {(a, b, cell[a], cell[b]) for a, b in itertools.combinations(range(len(cell)), 2)}


CHOSEN = pairwise()
CELLS = [
    pytest.param(*cell, marks=() if cell in CHOSEN else pytest.mark.slow, id="-".join(cell))
    for cell in PRODUCT
]


@pytest.mark.parametrize(("name", "form", "transform", "batch_form"), CELLS)
def test_a_cell(name, form, transform, batch_form):
    call, wanted = CALLS[name]
    this = case(form, transform, batch_form)
    refusal = REFUSED.get((name, form, "*")) or REFUSED.get((name, form, transform))
    if refusal:
        with pytest.raises(InputError, match=refusal):
            call(this)
        return
    found = np.asarray(call(this), float)
    np.testing.assert_allclose(found, np.asarray(wanted(), float), rtol=5e-4, atol=1e-5)


def test_every_public_instrument_is_here():
    """Or has no network, is not an instrument, or needs another network; each with its reason."""
    others = {
        "average_fields": "takes results",
        "cka": "forms: layers/test_cka.py",
        "count_macs": "the sum of `cost`",
        "critical_sigma_w": "takes an activation function",
        "cross_entropy": "a loss",
        "error_rate": "a metric",
        "half_mse": "a loss",
        "from_function": "makes a network",
        "from_nnx": "makes a network",
        "grad_cam": "forms: attribution/test_grad_cam.py",
        "gradient_confusion": "forms: gradients/test_gradient_confusion.py",
        "histograms": "forms: layers/test_histograms.py",
        "integrated_gradients": "forms: attribution/test_integrated_gradients.py",
        "gradient_line": "takes two inputs: gradients/test_shattering.py",
        "init_variables": "initialises",
        "kernel_norms": "takes gradients",
        "kernel_order": "returns names",
        "layer_fields": "theory: receptive_field/test_layer_fields.py",
        "linearised": "returns a function: ntk/test_linearised.py",
        "loss_contributions": "needs auxiliary heads: gradients/test_auxiliary_losses.py",
        "macs_by_layer": "the rows of `cost`",
        "mean_field": "takes an activation function",
        "params_by_layer": "the rows of `cost`",
        "path_gradient": "the terms of path_lengths",
        "random_direction": "takes variables",
        "receptive_fields": "takes a function of images",
        "stage_table": "the rows of `cost` by stage",
        "edge_of_stability": "a formula",
        "logged_sharpness": "takes rows of a log",
        "sharpness_path": "takes numbers",
        "takes_class_labels": "marks a loss",
        "trajectory": "takes variables",
    }
    functions = {
        name
        for name in instruments.__all__
        if callable(getattr(instruments, name)) and name[0].islower()
    }
    assert functions == set(CALLS) | set(others)
