"""The network linearised in its parameters, and its training compared with the network's own.

Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein and Pennington, "Wide neural networks of any
depth evolve as linear models under gradient descent", 2019 (arXiv:1902.06720).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.batch import batch_size
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    Model,
    apply_module,
    entry,
    inputs_of,
    labels_of,
    mode_text,
    takes_class_labels,
    validate_inputs,
)
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import (
    as_real,
    check_like,
    replace_leaves,
    restored,
    sum_dtype,
    widened,
)
from deepjax.analysis.ntk.kernel import count_outputs
from deepjax.errors import InputError, require


def linearised(model: Model, variables: Any) -> Callable[[Any, Any], Array]:
    """First-order Taylor expansion in the parameters: a function (params, inputs) -> outputs.

    f(params_0) + J (params - params_0), in evaluation mode, with params_0 and J from `variables`.
    The function raises InputError for parameters or inputs that do not fit. Cost of a call: one
    forward and about two backward passes; differentiable; compiled once for each network and shape.
    Source: Lee et al. 2019, equation 8.
    """
    model, variables = entry(model, variables)

    def function(params: Any, inputs: Any) -> Array:
        params = replace_leaves(
            variables["params"], check_like("params", params, variables["params"])
        )
        count_outputs(model, variables, inputs)
        return _linear(model, variables, params, inputs)

    return function


@takes_class_labels
def half_mse(outputs: Array, batch: Batch) -> Array:
    """Half the squared distance of outputs and labels, mean over examples.

    Integer labels are one-hot encoded.
    """
    labels = labels_of(batch)
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == outputs.shape[:-1]:
        labels = jax.nn.one_hot(labels, outputs.shape[-1])
    require(
        labels.shape == outputs.shape,
        "labels",
        f"of shape {labels.shape}",
        f"{outputs.shape}, or integers {outputs.shape[:-1]}",
    )
    outputs = widened(outputs)
    return jnp.sum(jnp.square(outputs - labels.astype(outputs.dtype))) / (2 * outputs.shape[0])


@dataclasses.dataclass(frozen=True, eq=False)
class LinearisedRun:
    """A network and its linearisation, trained from the same parameters."""

    learning_rate: float
    examples: int
    loss: np.ndarray
    """(steps + 1,): of the network, before the first step and after each step."""
    loss_linear: np.ndarray
    """(steps + 1,): of the linearisation."""
    rmse: np.ndarray
    """(steps + 1,): root mean squared difference of both outputs, over examples and outputs."""
    rms_change: np.ndarray
    """(steps + 1,): of the network's outputs since the start, as a scale for `rmse`."""
    params: Any
    """Of the network, after the last step."""
    params_linear: Any
    mode: str
    """How the network was set to evaluation, and which streams and collections it still uses."""

    def rows(self) -> list[dict[str, Any]]:
        """One dict per step."""
        names = ("loss", "loss_linear", "rmse", "rms_change")
        columns = zip(*(getattr(self, name).tolist() for name in names), strict=True)
        return [
            {"step": step, **dict(zip(names, row, strict=True))} for step, row in enumerate(columns)
        ]

    def plot(self, ax: Any = None) -> Any:
        """Change of the outputs, and error of the linearisation, by step; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas, format_percent, plain_log_ticks

        steps = np.arange(len(self.rmse))
        lines = {
            "change of the network's outputs": (self.rms_change, "-"),
            "error of the linearisation": (self.rmse, "--"),
        }
        with canvas(ax, 5.6, 4.0) as axes:
            axes.set_yscale("log")
            for (label, (values, style)), color in zip(lines.items(), COLORS, strict=False):
                shown = np.where(values > 0, values, np.nan)[1:]
                axes.plot(steps[1:], shown, style, color=color, label=label)
            if len(steps) > 50:
                axes.set_xscale("log")
            error, change = self.rmse[-1], self.rms_change[-1]
            ratio = format_percent(error / change if change > 0 else math.nan)
            title = f"After {steps[-1]} steps the linearisation is off by {ratio} of the change"
            losses = f"losses {self.loss[-1]:.3g} and {self.loss_linear[-1]:.3g} (linear)"
            axes.set_title(f"{title}\n{losses}, from {self.loss[0]:.3g}")
            axes.set(xlabel="step", ylabel="RMS over examples and outputs")
            axes.legend()
            plain_log_ticks(axes)
        return axes


def linearised_training(
    model: Model,
    variables: Any,
    batch: Batch,
    *,
    steps: int,
    learning_rate: float,
    loss: Loss = half_mse,
    progress: Progress = None,
) -> LinearisedRun:
    """Full-batch gradient descent on the network and on its linearisation, from the same start.

    Both in evaluation mode: running statistics, no dropout. With `half_mse` the error of the
    linearisation decays along the full kernel's eigenvectors at rates learning_rate x eigenvalue /
    examples, and diverges where that is above 2.
    Raises InputError for a batch that does not fit, steps below 1, and where a loss becomes
    non-finite. Cost: about six passes over the batch per step; memory of training, plus three times
    the parameters. Compiled once for each network, loss and shape.
    Source: Lee et al. 2019, sections 2.2 and 3 (its Figure 4 shows this RMSE).
    """
    model, variables = entry(model, variables)
    require(isinstance(steps, int) and steps >= 1, "steps", steps, "1 or more")
    require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
    validate_inputs(model, variables, batch, loss, False)
    count_outputs(model, variables, inputs_of(batch))
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
            f"learning_rate is {learning_rate}; allowed: smaller ones, for at step "
            f"{wrong.argmax()} a loss is not finite"
        )
    return LinearisedRun(
        learning_rate,
        batch_size(batch),
        *columns,
        *final,
        mode=mode_text(model, variables, batch, False),
    )


def _taylor(
    model: Model, variables: Any, params: Any, inputs: Any
) -> tuple[Array, Array, Callable[[Array], Any]]:
    """(outputs at the variables, the change that is linear in params, and J^T)."""
    own = variables["params"]

    def outputs(view: Any) -> Array:
        return apply_module(
            model, {**variables, "params": restored(view, own)}, (inputs, None), False
        )[0]

    view = as_real(own)
    value, pull = jax.vjp(outputs, view)
    step = jax.tree.map(lambda new, old: new.astype(old.dtype) - old, as_real(params), view)
    # J v as the transpose of u -> J^T u: jax.jvp refuses networks with a custom_vjp.
    (moved,) = jax.vjp(lambda cotangent: pull(cotangent)[0], value)[1](step)
    return value, moved, lambda cotangent: pull(cotangent)[0]


@functools.partial(jax.jit, static_argnames=("model",))
def _linear(model: Model, variables: Any, params: Any, inputs: Any) -> Array:
    with jax.default_matmul_precision("highest"):
        value, moved, _ = _taylor(model, variables, params, inputs)
    return value + moved


@functools.partial(jax.jit, static_argnames=("model", "loss"))
def _descend(
    state: Any, variables: Any, batch: Batch, rate: Any, *, model: Model, loss: Loss
) -> tuple[Any, tuple[Array, ...]]:
    """One step of both.

    Returns (both parameters after the step, (loss, linear loss, RMSE, RMS change) before it).
    """
    views = as_real(state[0]), as_real(state[1])

    def value(view: Any) -> tuple[Array, Array]:
        outputs = apply_module(
            model, {**variables, "params": restored(view, state[0])}, batch, False
        )[0]
        return loss(outputs, batch), outputs

    with jax.default_matmul_precision("highest"):
        (value_full, outputs), gradient = jax.value_and_grad(value, has_aux=True)(views[0])
        start, moved, pull = _taylor(model, variables, state[1], inputs_of(batch))
        value_linear, cotangent = jax.value_and_grad(lambda outputs: loss(outputs, batch))(
            start + moved
        )
        gradients = (gradient, pull(cotangent))
    later = jax.tree.map(lambda old, slope: old - rate * slope, views, gradients)
    return restored(later, state), (
        value_full,
        value_linear,
        _rms(outputs - start - moved),
        _rms(outputs - start),
    )


def _rms(values: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(widened(values))))
