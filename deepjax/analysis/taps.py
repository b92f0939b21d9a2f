"""Measuring at the outputs of an unmodified linen module's layers, in the pass that computes the parameters' gradients.

Linen's method interception sends each tapped output through an identity that has another argument, the slot: zeros. In the backward
pass the identity gives its slot as cotangent whatever was measured of the output and is measured of its cotangent, so that
differentiating the loss with respect to the slots, together with the parameters, returns all measurements. Being gradients they
leave `nn.remat`, `nn.jit` and `nn.scan` as any gradient does, and add up over the runs of a scanned block or the calls of a shared
layer.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers
from jax import Array
from jax.core import Tracer

from deepjax.analysis.calls import in_order, is_float, is_sum
from deepjax.analysis.forward import Batch, Loss, Rngs, check, cross_entropy, hashable, loss_of, shapes_of
from deepjax.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured; both return trees of arrays that may be added up over calls."""

    output: Callable[[tuple[Any, ...], Array], Any]
    """(positional arguments of the layer's call, its output) -> tree, in the forward pass."""
    cotangent: Callable[[Array], Any]
    """(the loss's gradient with respect to the output) -> tree, in the backward pass."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer's output: path of the module ("stage1_block1/conv1"; "" is the network), shape and dtype of what it returns."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    calls: int
    """How often the network calls it; runs of a scanned body count once."""
    inside: bool
    """Whether it is called inside a transformation of linen (scan, remat, jit, vmap)."""
    arguments: tuple[tuple[int, ...] | None, ...]
    """Shapes of the positional arguments; None for one that is no array of floats."""
    is_sum: bool
    """Whether the call's arguments are named (shortcut, branch), by which a residual block shows what it adds up."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tap:
    """A layer's output, and the loss's gradient with respect to it; both have the output's shape."""

    activation: Array
    gradient: Array


def sites(model: nn.Module, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None) -> tuple[Site, ...]:
    """Every layer that returns an array of floats, in the order in which the forward pass ends them; nothing is computed.

    Raises InputError where the batch does not fit the network.
    """
    check(model, variables, batch, loss, train, rngs)
    return _sites(hashable(model), loss, train, *shapes_of((variables, batch, rngs)))


@functools.lru_cache(maxsize=256)
def _sites(model: nn.Module, loss: Loss, train: bool, structure: Any, shapes: tuple[Any, ...]) -> tuple[Site, ...]:
    found: dict[str, Site] = {}
    variables, batch, rngs = jax.tree.unflatten(structure, shapes)
    check(model, variables, batch, loss, train, rngs)

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Array, inside: bool) -> Array:
        path = "/".join(module.path)
        known = found.pop(path, None)
        calls = 1 + (known.calls if known and not inside else 0)
        shapes = tuple(each.shape if is_float(each) else None for each in arguments)
        found[path] = Site(path, output.shape, str(output.dtype), calls, inside, shapes, is_sum(module))
        return output

    def forward(variables: Any, batch: Batch, rngs: Rngs) -> Array:
        with nn.intercept_methods(_at_outputs(note)):
            return loss_of(model, variables, batch, loss, train, rngs)

    jax.eval_shape(forward, variables, batch, rngs)
    return tuple(found.values())


def chosen(all_sites: Sequence[Site], layers: Sequence[str] | None) -> tuple[Site, ...]:
    """The sites of these paths, in their order in the network; None: all. Raises InputError for unknown paths."""
    if layers is None:
        return tuple(all_sites)
    paths = {site.path for site in all_sites}
    for layer in layers:
        if layer not in paths:
            raise unknown("layer", layer, filter(None, paths))
    return tuple(site for site in all_sites if site.path in set(layers))


def measured(
    model: nn.Module, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs, at: Sequence[Site], measure: Measure
) -> tuple[Array, Any, dict[str, Any]]:
    """(loss, gradients of the parameters, measurements by path): one forward and one backward pass; call it inside jit.

    A layer from which nothing leads to the loss measures zeros.
    """
    slots = {site.path: _slot(measure, site) for site in at}
    rest = {name: value for name, value in dict(variables).items() if name != "params"}

    def forward(params: Any, slots: dict[str, Any]) -> Array:
        def tap(module: nn.Module, arguments: tuple[Any, ...], output: Array, inside: bool) -> Array:
            path = "/".join(module.path)
            if path not in slots:
                return output
            return _probe(measure, output, jax.lax.stop_gradient(measure.output(arguments, output)), slots[path])

        with nn.intercept_methods(_at_outputs(tap)):
            return loss_of(model, {"params": params, **rest}, batch, loss, train, rngs)

    value, (gradients, measurements) = jax.value_and_grad(forward, argnums=(0, 1))(variables["params"], slots)
    return value, gradients, measurements


def _slot(measure: Measure, site: Site) -> Any:
    """Zeros in the form of all that is measured there."""
    output = jax.ShapeDtypeStruct(site.shape, jnp.dtype(site.dtype))
    arguments = tuple(None if shape is None else jax.ShapeDtypeStruct(shape, output.dtype) for shape in site.arguments)
    shapes = (jax.eval_shape(lambda: measure.output(_zeros(arguments), _zeros(output))), jax.eval_shape(measure.cotangent, output))
    return _zeros(shapes)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)


def taps(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    layers: Sequence[str],
    *,
    loss: Loss = cross_entropy,
    train: bool = True,
    rngs: Rngs = None,
) -> dict[str, Tap]:
    """Activations of the named layers, and the loss's gradient with respect to them, of any linen module, unmodified.

    Compiled once for a network, loss and shapes; inside `jax.jit` too, where what a layer runs cannot be looked at.
    Cost: one forward and one backward pass; memory: twice the outputs asked for.
    Raises InputError for an unknown layer (naming the nearest), for one that is called more than once or inside `nn.scan` or
    `nn.vmap` (whose runs would add up; `trace` shows those), for one from which nothing leads to the loss (its output would be
    zeros), and for a batch or a loss that does not fit.
    """
    model = hashable(model)
    at = chosen(sites(model, variables, batch, loss, train, rngs), layers)
    for site in at:
        if site.calls > 1:
            raise InputError(f"layer {site.path!r} is called {site.calls} times; taps takes layers called once; trace() shows it")
    values = _taps(model, variables, batch, rngs, loss=loss, train=train, at=at)
    for path, ((_, runs), _) in values.items():
        if isinstance(runs, Tracer):
            continue
        if runs > 1:
            raise InputError(
                f"layer {path!r} runs {runs:.0f} times inside a scan or vmap; taps takes layers run once; trace() shows it"
            )
        if runs < 1:
            raise InputError(
                f"nothing leads from layer {path!r} to the loss, so that it has no gradient; "
                "its output alone: model.apply(..., capture_intermediates=True)"
            )
    return {path: Tap(output, cotangent) for path, ((output, _), cotangent) in values.items()}


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "at"))
def _taps(model: nn.Module, variables: Any, batch: Batch, rngs: Rngs, *, loss: Loss, train: bool, at: tuple[Site, ...]) -> Any:
    return measured(model, variables, batch, loss, train, rngs, at, _WHOLE)[2]


def one_run(output: Array) -> Array:
    """1, for each instance of a layer under `nn.vmap`: a constant would be one for all of them."""
    first = output.reshape(-1)[:1]
    return jnp.sum(jnp.where(first == first, 1.0, 1.0).astype(jnp.float32))


_WHOLE = Measure(lambda arguments, output: (output, one_run(output)), lambda cotangent: cotangent)


def _at_outputs(act: Callable[[nn.Module, tuple[Any, ...], Array, bool], Array]) -> Any:
    """An interceptor that hands every module's output, where it is one array of floats, to `act`, and returns what that returns."""
    base: list[Any] = []  # the trace that the network itself is called in

    def intercept(function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if not base:
            base.append(tracers.current_trace())
        output = function(*arguments, **keywords)
        if context.method_name != "__call__" or not is_float(output):
            return output
        given = in_order(context.module, arguments, keywords)
        return act(context.module, given, output, tracers.current_trace() != base[0])

    return intercept


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _probe(measure: Measure, output: Array, noted: Any, slot: Any) -> Array:
    return output


def _forward(measure: Measure, output: Array, noted: Any, slot: Any) -> tuple[Array, Any]:
    return output, noted


def _backward(measure: Measure, noted: Any, cotangent: Array) -> tuple[Array, Any, Any]:
    return cotangent, jax.tree.map(jnp.zeros_like, noted), (noted, measure.cotangent(cotangent))


_probe.defvjp(_forward, _backward)
