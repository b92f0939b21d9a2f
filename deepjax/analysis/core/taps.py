"""Measurements at the outputs of a linen module's layers, in the same pass as the gradients.

Method interception sends each tapped output through an identity with a second argument, the slot
(zeros). Its backward pass returns the measurements of the output and of its cotangent as the
gradient of the slot: differentiating the loss with respect to parameters and slots returns all
measurements. Like any gradient they pass through `nn.remat`, `nn.jit` and `nn.scan`, and add up
over the runs of a scanned block and the calls of a shared layer.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer

from deepjax.analysis.core.batch import require_one
from deepjax.analysis.core.calls import ModuleOutput, intercept_outputs, is_float, is_sum
from deepjax.analysis.core.cotangent_slot import probe
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    Model,
    Rngs,
    as_static,
    cross_entropy,
    entry,
    loss_of,
    validate_inputs,
)
from deepjax.backend.jax_internals import ClosedJaxpr, Jaxpr
from deepjax.errors import InputError, unknown_name_error


@dataclasses.dataclass(frozen=True)
class Measure:
    """Measurements: trees of arrays that add up over calls."""

    output: Callable[[tuple[Any, ...], Array], Any]
    """(positional arguments of the call, output) -> tree, in the forward pass."""
    cotangent: Callable[[Array], Any]
    """(the loss's gradient with respect to the output) -> tree, in the backward pass."""


@dataclasses.dataclass(frozen=True)
class Site:
    """An output of a layer, of one shape; modules that share a scope have separate sites."""

    path: tuple[str, ...]
    """Of the module, as in the parameters; () is the network."""
    output: str
    """"" if `__call__` returns one array; else such as "[0]" or ".encode()['mean']"."""
    kind: str
    """Name of the module's class."""
    name: str | None
    """Of the module; it differs from the path's last name where modules share a scope."""
    shape: tuple[int, ...]
    dtype: str
    arguments: tuple[tuple[int, ...] | None, ...]
    """Shapes of the positional arguments; None for one that is not an array of floats."""
    is_sum: bool
    """Whether it is a residual sum: its arguments are named (shortcut, branch)."""
    calls: int = dataclasses.field(compare=False)
    """Number of calls; the runs of a scanned body count once."""
    in_transform: bool = dataclasses.field(compare=False)
    """Whether it is called inside a transform of linen (scan, remat, jit, vmap)."""
    in_custom_vjp: bool = dataclasses.field(default=False, compare=False)
    """Whether a call is inside `nn.custom_vjp`, where nothing can be measured."""

    @property
    def layer(self) -> str:
        """The path for display: "stage1_block1/conv1"; "" is the network."""
        return "/".join(self.path)


@dataclasses.dataclass(frozen=True, eq=False)
class Tap:
    """A layer's output and the gradient of the loss with respect to it, of the same shape."""

    activation: Array
    gradient: Array


def sites(
    model: Model, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None
) -> tuple[Site, ...]:
    """Every array of real or complex floats that a layer returns, in the order of the calls' ends.

    By abstract evaluation. Raises InputError where the batch does not fit the network.
    """
    return _sites(
        as_static(model), loss, train, *validate_inputs(model, variables, batch, loss, train, rngs)
    )


@functools.lru_cache(maxsize=256)
def _sites(
    model: Model, loss: Loss, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[Site, ...]:
    known_sites: dict[Site, Site] = {}
    variables, batch, rngs = jax.tree.unflatten(structure, shapes)
    validate_inputs(model, variables, batch, loss, train, rngs)

    marked: list[Site] = []

    def record(found: ModuleOutput) -> Array:
        site = _site(found)
        known = known_sites.pop(site, None)
        again = known.calls if known and not site.in_transform else 0
        known_sites[site] = dataclasses.replace(site, calls=1 + again)
        marked.append(site)
        return checkpoint_name(found.value, f"{_MARK}{len(marked) - 1}")

    def forward(variables: Any, batch: Batch, rngs: Rngs) -> Array:
        with intercept_outputs(record):
            return loss_of(model, variables, batch, loss, train, rngs)

    names = _names_in_custom_vjp(jax.make_jaxpr(forward)(variables, batch, rngs).jaxpr)
    hidden = {site for index, site in enumerate(marked) if f"{_MARK}{index}" in names}
    return tuple(
        dataclasses.replace(site, in_custom_vjp=site in hidden) for site in known_sites.values()
    )


_MARK = "site "  # prefix of the name of the identity that marks an output


def _names_in_custom_vjp(jaxpr: Jaxpr, inside: bool = False) -> set[str]:
    """Names that `checkpoint_name` has given to values inside a custom_vjp."""
    names: set[str] = set()
    for equation in jaxpr.eqns:
        if inside and equation.primitive.name == "name":
            names.add(equation.params["name"])
        within = inside or equation.primitive.name.startswith("custom_vjp_call")
        for each in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(each):
                names |= _names_in_custom_vjp(
                    each.jaxpr if isinstance(each, ClosedJaxpr) else each, within
                )
    return names


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _site(found: ModuleOutput) -> Site:
    module, value = found.module, found.value
    shapes = tuple(each.shape if is_float(each) else None for each in _arguments(found))
    kind, summed = type(module).__name__, is_sum(module)
    return Site(
        module.path,
        found.output,
        kind,
        module.name,
        value.shape,
        str(value.dtype),
        shapes,
        summed,
        calls=1,
        in_transform=found.in_transform,
    )


def _arguments(found: ModuleOutput) -> tuple[Any, ...]:
    """Up to the last array of floats: switches after it do not distinguish sites."""
    last = max((i for i, each in enumerate(found.arguments) if is_float(each)), default=-1)
    return found.arguments[: last + 1]


_FEATURES: tuple[Callable[[Site], str], ...] = (
    lambda site: site.kind,
    lambda site: _text(site.shape),
    lambda site: "of " + (", ".join(map(_text, site.arguments)) or "none"),
    lambda site: site.dtype,
    lambda site: str(site.name),
)


def _text(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"


def labels(at: Sequence[Site]) -> tuple[str, ...]:
    """Suffixes of the layer's name: `Site.output`, and features where several sites share it."""
    alike: dict[Any, list[Site]] = defaultdict(list)
    for site in at:
        alike[site.path, site.output].append(site)
    features_of = {key: _differing(group) for key, group in alike.items()}
    return tuple(
        site.output + _feature_text(site, features_of[site.path, site.output]) for site in at
    )


def _feature_text(site: Site, features: Sequence[Callable[[Site], str]]) -> str:
    return f" ({', '.join(of(site) for of in features)})" if features else ""


def _differing(group: Sequence[Site]) -> list[Callable[[Site], str]]:
    """The first features that distinguish all of the sites; none for a single site."""
    chosen: list[Callable[[Site], str]] = []
    for feature in _FEATURES:
        if len({tuple(of(site) for of in chosen) for site in group}) == len(group):
            break
        if len({feature(site) for site in group}) > 1:
            chosen.append(feature)
    return chosen


def select_sites(
    all_sites: Sequence[Site], layers: Sequence[str] | None, others: Sequence[str] = ()
) -> tuple[Site, ...]:
    """The sites of these layers, in the order of the network; None: all.

    A layer is given by its path, which selects all outputs, or by path and label. `others`: names
    without a site that are allowed. Raises InputError for any other name.
    """
    if layers is None:
        return tuple(all_sites)
    names = [
        (site.layer, site.layer + label)
        for site, label in zip(all_sites, labels(all_sites), strict=True)
    ]
    known = dict.fromkeys(name for pair in names for name in pair if name) | dict.fromkeys(others)
    for layer in layers:
        if layer not in known:
            raise unknown_name_error("layer", layer, known)
    return tuple(
        site
        for site, pair in zip(all_sites, names, strict=True)
        if not set(pair).isdisjoint(layers)
    )


def loss_grads_and_measurements(
    model: Model,
    variables: Any,
    batch: Batch,
    loss: Loss,
    train: bool,
    rngs: Rngs,
    at: Sequence[Site],
    measure: Measure,
) -> tuple[Array, Any, list[Any]]:
    """(loss, gradients of the parameters, measurements by site); call it inside jit.

    One forward and one backward pass. The measurements of a layer that does not influence the loss
    are zeros. A derivative that the network takes in its forward pass is an operation like any
    other. Integer parameters have the gradient float0.
    """
    indices = {site: index for index, site in enumerate(at) if not site.in_custom_vjp}
    slots = [_slot(measure, site) for site in at]
    rest = {name: value for name, value in dict(variables).items() if name != "params"}

    def forward(params: Any, slots: list[Any]) -> Array:
        def tap(found: ModuleOutput) -> Array:
            index = indices.get(_site(found))
            if index is None:
                return found.value
            return probe(
                found.value,
                slots[index],
                measure.output(_arguments(found), found.value),
                measure.cotangent,
            )

        with intercept_outputs(tap):
            return loss_of(model, {"params": params, **rest}, batch, loss, train, rngs)

    gradient = jax.value_and_grad(forward, argnums=(0, 1), allow_int=True)
    value, (gradients, measurements) = gradient(variables["params"], slots)
    return value, gradients, measurements


def _slot(measure: Measure, site: Site) -> Any:
    """Zeros of the structure of the measurements."""
    output = jax.ShapeDtypeStruct(site.shape, jnp.dtype(site.dtype))
    arguments = tuple(
        None if shape is None else jax.ShapeDtypeStruct(shape, output.dtype)
        for shape in site.arguments
    )
    shapes = (
        jax.eval_shape(lambda: measure.output(_zeros(arguments), _zeros(output))),
        jax.eval_shape(measure.cotangent, output),
    )
    return _zeros(shapes)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)


def taps(
    model: Model,
    variables: Any,
    batch: Batch,
    layers: Sequence[str],
    *,
    loss: Loss = cross_entropy,
    train: bool = True,
    rngs: Rngs = None,
) -> dict[str, Tap]:
    """Activations of the given layers and the loss's gradients with respect to them.

    Works on any unmodified linen module. A layer that returns several arrays has several entries,
    "lstm[0]" and "lstm[1]", each of which can be requested by name. Compiled once for each network,
    loss and shape; inside `jax.jit`, the number of runs of a layer is not checked.
    Cost: one forward and one backward pass; memory: twice the requested outputs.
    Raises InputError for an unknown layer (with the nearest name); for a layer that is called more
    than once or inside `nn.scan` or `nn.vmap` (`trace` shows those), is inside `nn.custom_vjp`, or
    does not influence the loss; for a list of batches, and a batch or loss that does not fit.
    """
    require_one(batch, "taps")
    model, variables = entry(model, variables)
    at = select_sites(sites(model, variables, batch, loss, train, rngs), layers)
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
    values = _taps(model, variables, batch, rngs, loss=loss, train=train, at=at)
    for name, ((_, runs), _) in zip(names, values, strict=True):
        if isinstance(runs, Tracer):
            continue
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
    return {
        name: Tap(output, cotangent)
        for name, ((output, _), cotangent) in zip(names, values, strict=True)
    }


@functools.partial(jax.jit, static_argnames=("model", "loss", "train", "at"))
def _taps(
    model: Model,
    variables: Any,
    batch: Batch,
    rngs: Rngs,
    *,
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
