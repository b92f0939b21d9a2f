"""The network linearised in its parameters, and its training compared with the network's own.

Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein and Pennington, "Wide neural networks of any
depth evolve as linear models under gradient descent", 2019 (arXiv:1902.06720).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import LayerNames, Layers, parameter_layers, selected_leaves
from deepjax.analysis.core.mode import EVAL, TRAIN, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import (
    Path,
    check_like,
    real_leaves,
    replace_leaves,
    restored,
    subtree,
    sum_dtype,
    widened,
)
from deepjax.analysis.core.result import Result
from deepjax.analysis.network.batch import Batches, count_examples, data_text, mean_over_batches
from deepjax.analysis.network.module import (
    Batch,
    Loss,
    Model,
    apply_module,
    as_key,
    entry,
    inputs_of,
    labels_of,
    takes_class_labels,
)
from deepjax.analysis.ntk.own_outputs import prepare_one_array, require_own_outputs
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError, require

Block = Mapping[Path, Any]
"""The parameters that move, by path."""


@instrument
def linearised(
    model: Model,
    variables: Any,
    *,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
) -> Callable[[Any, Any], Array]:
    """First-order Taylor expansion in the parameters: a function (params, batch) -> outputs.

    f(params_0) + J (params - params_0), with params_0 and J from `variables`. batch: one batch, or
    the inputs alone. layers: the expansion in these modules' parameters, of which `params` is then
    the tree. In training every call has the same dropout masks, of `key`; Ghost(k) is TRAIN.
    Raises InputError for unknown layers, and in training with batch statistics, under which an
    example has no output of its own; the function for parameters or inputs that do not fit.
    Cost of a call: one forward and about two backward passes; differentiable; compiled once for
    each network and shape. Source: Lee et al. 2019, equation 8.
    """
    network, variables = entry(model, variables)
    require_own_outputs(variables, mode)
    mode = TRAIN if mode.train else EVAL
    own, names = as_key(key), parameter_layers(layers, variables["params"])
    block = selected_leaves(variables["params"], names)
    like = subtree(variables["params"], block)

    def function(params: Any, batch: Any) -> Array:
        given = check_like("params", params, like)
        task = prepare_one_array(network, variables, [batch], mode=mode, key=own)
        return _linear(
            variables, given, task.data.first, own, model=network, train=mode.train, layers=names
        )

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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LinearisedRun(Result):
    """A network and its linearisation, trained from the same parameters."""

    learning_rate: float
    examples: int | None
    """None where they are not along the first axis, as in a graph."""
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
    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    has_batch_norm: bool

    @property
    def relative_error(self) -> float:
        """The last `rmse` as a fraction of the change of the network's outputs."""
        return float(self.rmse[-1] / self.rms_change[-1]) if self.rms_change[-1] > 0 else math.nan

    def summary(self) -> dict[str, Any]:
        """Both losses after the last step, and the error of the linearisation."""
        return {
            "first loss": float(self.loss[0]),
            "loss": float(self.loss[-1]),
            "linear loss": float(self.loss_linear[-1]),
            "relative error": self.relative_error,
            "steps": len(self.loss) - 1,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per step."""
        names = ("loss", "loss_linear", "rmse", "rms_change")
        columns = zip(*(getattr(self, name).tolist() for name in names), strict=True)
        return [
            {"step": step, **dict(zip(names, row, strict=True))} for step, row in enumerate(columns)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Change of the outputs, and error of the linearisation, by step; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas, format_percent, plain_log_ticks

        steps = np.arange(len(self.rmse))
        lines = {
            "change of the network's outputs": (self.rms_change, "-"),
            "error of the linearisation": (self.rmse, "--"),
        }
        with canvas(ax, 5.6, 4.0, title) as axes:
            axes.set_yscale("log")
            for (label, (values, style)), color in zip(lines.items(), COLORS, strict=False):
                shown = np.where(values > 0, values, np.nan)[1:]
                axes.plot(steps[1:], shown, style, color=color, label=label)
            if len(steps) > 50:
                axes.set_xscale("log")
            ratio = format_percent(self.relative_error)
            finding = f"After {steps[-1]} steps the linearisation is off by {ratio} of the change"
            losses = f"losses {self.loss[-1]:.3g} and {self.loss_linear[-1]:.3g} (linear)"
            data = data_text(self.examples, self.mode, self.has_batch_norm)
            axes.set_title(f"{finding}\n{losses}, from {self.loss[0]:.3g}; {data}")
            axes.set(xlabel="step", ylabel="RMS over examples and outputs")
            axes.legend()
            plain_log_ticks(axes)
        return axes


@instrument
def linearised_training(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss = half_mse,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    progress: Progress = None,
    steps: int,
    learning_rate: float,
) -> LinearisedRun:
    """Full-batch gradient descent on the network and on its linearisation, from the same start.

    Of a list of batches every step follows the gradient of their mean loss. With `half_mse` the
    error of the linearisation decays along the full kernel's eigenvectors at rates learning_rate x
    eigenvalue / examples, and diverges where that is above 2. layers: only these modules'
    parameters are trained. In TRAIN every step has the same dropout masks.
    Raises InputError for a batch or layers that do not fit, training mode with batch statistics,
    under which an example has no output of its own, steps below 1, and where a loss becomes
    non-finite. Cost: about six passes over the data per step; memory of training on one batch, plus
    three times the parameters. Compiled once for each network, loss and shape.
    Source: Lee et al. 2019, sections 2.2 and 3 (its Figure 4 shows this RMSE).
    """
    require(isinstance(steps, int) and steps >= 1, "steps", steps, "1 or more")
    require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
    task = prepare_one_array(model, variables, batch, loss=loss, mode=mode, key=key)
    params = task.variables["params"]
    names = parameter_layers(layers, params)
    start = selected_leaves(params, names)
    state, found = (start, start), []
    rate = np.asarray(learning_rate, sum_dtype(*start.values()))
    options = {"model": task.network, "loss": loss, "train": mode.train, "layers": names}
    for step in range(steps + 1):
        final = state
        state, numbers = _descend(
            state, task.variables, task.data.stacked, task.key, rate, **options
        )
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
    examples = count_examples(inputs_of(task.network, task.data.first))
    return LinearisedRun(
        learning_rate,
        None if examples is None else task.data.batches * examples,
        *columns,
        *(replace_leaves(params, each) for each in final),
        mode=mode,
        mode_text=task.mode_text,
        has_batch_norm=task.has_batch_norm,
    )


def _taylor(
    model: Model,
    variables: Any,
    block: Block,
    batch: Batch,
    key: Array,
    train: bool,
    layers: LayerNames,
) -> tuple[Array, Array, Callable[[Array], Any]]:
    """(outputs at the variables, the change that is linear in the block, and J^T)."""
    params = variables["params"]
    start = selected_leaves(params, layers)

    def outputs(view: Any) -> Array:
        given = {**variables, "params": replace_leaves(params, restored(view, start))}
        return apply_module(model, given, batch, train, key)[0]

    view = real_leaves(start)
    value, pull = jax.vjp(outputs, view)
    step = jax.tree.map(lambda new, old: new.astype(old.dtype) - old, real_leaves(block), view)
    # J v as the transpose of u -> J^T u: jax.jvp refuses networks with a custom_vjp.
    (moved,) = jax.vjp(lambda cotangent: pull(cotangent)[0], value)[1](step)
    return value, moved, lambda cotangent: pull(cotangent)[0]


@functools.partial(jax.jit, static_argnames=("model", "train", "layers"))
def _linear(
    variables: Any,
    block: Block,
    batch: Batch,
    key: Array,
    *,
    model: Model,
    train: bool,
    layers: LayerNames,
) -> Array:
    with jax.default_matmul_precision("highest"):
        value, moved, _ = _taylor(model, variables, block, batch, key, train, layers)
    return value + moved


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "layers"))
@canonicalize_conv_layouts
def _descend(
    state: tuple[Block, Block],
    variables: Any,
    stacked: Any,
    key: Array,
    rate: Any,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    layers: LayerNames,
) -> tuple[tuple[Block, Block], tuple[Array, ...]]:
    """One step of both.

    Returns (both parameters after the step, (loss, linear loss, RMSE, RMS change) before it).
    """
    params, (block, linear) = variables["params"], state
    views = real_leaves(block), real_leaves(linear)

    def one(key: Array, batch: Batch) -> tuple[tuple[Any, Any], tuple[Array, ...]]:
        def value(view: Any) -> tuple[Array, Array]:
            given = {**variables, "params": replace_leaves(params, restored(view, block))}
            outputs = apply_module(model, given, batch, train, key)[0]
            return loss(outputs, batch), outputs

        (value_full, outputs), gradient = jax.value_and_grad(value, has_aux=True)(views[0])
        start, moved, pull = _taylor(model, variables, linear, batch, key, train, layers)
        value_linear, cotangent = jax.value_and_grad(lambda outputs: loss(outputs, batch))(
            start + moved
        )
        numbers = (
            value_full,
            value_linear,
            _mean_square(outputs - start - moved),
            _mean_square(outputs - start),
        )
        return (gradient, pull(cotangent)), numbers

    with jax.default_matmul_precision("highest"):
        gradients, numbers = mean_over_batches(one, stacked, key)
    later = jax.tree.map(lambda old, slope: old - rate * slope, views, gradients)
    return restored(later, state), (*numbers[:2], *map(jnp.sqrt, numbers[2:]))


def _mean_square(values: Array) -> Array:
    return jnp.mean(jnp.square(widened(values)))
