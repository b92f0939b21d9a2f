"""Activations of layers and the loss's gradients with respect to them: `taps`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import TRAIN, Mode
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Batch, Loss, Model, Rngs, batch_key, cross_entropy
from deepjax.analysis.network.taps import (
    Measure,
    Site,
    labels,
    loss_grads_and_measurements,
    require_layers,
    select_sites,
    sites,
)
from deepjax.analysis.network.task import make_task
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Tap:
    """A layer's output and the gradient of the loss with respect to it, of the same shape."""

    activation: Array
    gradient: Array


@instrument
def taps(
    model: Model,
    variables: Any,
    batch: Batches,
    layers: str | Sequence[str],
    *,
    loss: Loss = cross_entropy,
    mode: Mode = TRAIN,
    key: Array | None = None,
) -> dict[str, Tap]:
    """Activations of the given layers and the loss's gradients with respect to them.

    Works on any unmodified module of linen or NNX. A layer that returns several arrays has several
    entries, "lstm[0]" and "lstm[1]", each of which can be requested by name. Of several batches the
    arrays are joined along the first axis, and the gradients are those of the mean loss. Compiled
    once for each network, loss and shape; inside `jax.jit`, the number of runs of a layer is not
    checked.
    Cost: one forward and one backward pass; memory: twice the requested outputs.
    Raises InputError for an unknown layer (with the nearest name); for a layer that is called more
    than once or inside `nn.scan` or `nn.vmap` (`trace` shows those), is inside `nn.custom_vjp`, or
    does not influence the loss; for a function, which has no layers; and for a batch or loss that
    does not fit.
    """
    task = make_task(model, variables, batch, loss=loss, mode=mode, key=key)
    require_layers(task.network, "taps")
    network, variables, data, train = task.network, task.variables, task.data, mode.train
    at = select_sites(sites(network, variables, data.first, loss, train), layers)
    names = [site.layer + label for site, label in zip(at, labels(at), strict=True)]
    for name, site in zip(names, at, strict=True):
        if site.in_custom_vjp:
            raise InputError(
                f"layer {name!r} runs inside nn.custom_vjp, where its gradient cannot be measured; "
                "its output alone: model.apply(..., capture_intermediates=True)"
            )
        if site.calls > 1:
            raise InputError(
                f"layer {name!r} is called {site.calls} times; taps takes layers called once; "
                "trace() shows it"
            )
    found: dict[str, list[Tap]] = {name: [] for name in names}
    for index in range(data.batches):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], data.stacked)
        own = batch_key(task.key, index, data.batches)
        values = _taps(variables, one, own, model=network, loss=loss, train=train, at=at)
        for name, ((output, runs), cotangent) in zip(names, values, strict=True):
            _require_one_run(name, runs)
            found[name].append(Tap(output, cotangent / data.batches))
    return {name: _joined(each) for name, each in found.items()}


def _require_one_run(name: str, runs: Array) -> None:
    if isinstance(runs, Tracer):
        return
    if runs > 1:
        raise InputError(
            f"layer {name!r} runs {runs:.0f} times inside a scan or vmap; taps takes layers "
            "run once; trace() shows it"
        )
    if runs < 1:
        raise InputError(
            f"nothing leads from layer {name!r} to the loss, so that it has no gradient; "
            "its output alone: model.apply(..., capture_intermediates=True)"
        )


def _joined(found: Sequence[Tap]) -> Tap:
    if len(found) == 1:
        return found[0]
    return Tap(
        jnp.concatenate([each.activation for each in found]),
        jnp.concatenate([each.gradient for each in found]),
    )


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "at"))
@canonicalize_conv_layouts
def _taps(
    variables: Any,
    batch: Batch,
    rngs: Rngs,
    *,
    model: Model,
    loss: Loss,
    train: bool,
    at: tuple[Site, ...],
) -> Any:
    return loss_grads_and_measurements(
        model, variables, batch, loss, train, rngs, at, _OUTPUT_AND_RUNS
    )[2]


_OUTPUT_AND_RUNS = Measure(
    lambda arguments, output: (output, jnp.ones((), jnp.float32)), lambda cotangent: cotangent
)
