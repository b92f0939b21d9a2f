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

from deepjax.analysis.core.cotangent_slot import probe
from deepjax.analysis.core.layers import Layers, matching_layers
from deepjax.analysis.network.adapter import Adapter
from deepjax.analysis.network.calls import LayerOutput, intercept_outputs, is_float
from deepjax.analysis.network.module import (
    Batch,
    Loss,
    Model,
    Network,
    Rngs,
    loss_of,
    name_of,
    network_of,
    validate_inputs,
)
from deepjax.backend.jax_internals import ClosedJaxpr, Jaxpr
from deepjax.errors import InputError


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


def sites(
    model: Model, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None
) -> tuple[Site, ...]:
    """Every array of real or complex floats that a layer returns, in the order of the calls' ends.

    By abstract evaluation. Raises InputError where the batch does not fit the network.
    """
    return _sites(
        network_of(model), loss, train, *validate_inputs(model, variables, batch, loss, train, rngs)
    )


@functools.lru_cache(maxsize=256)
def _sites(
    model: Model, loss: Loss, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[Site, ...]:
    known_sites: dict[Site, Site] = {}
    variables, batch, rngs = jax.tree.unflatten(structure, shapes)
    validate_inputs(model, variables, batch, loss, train, rngs)

    marked: list[Site] = []

    def record(found: LayerOutput) -> Array:
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


def _site(found: LayerOutput) -> Site:
    layer, value = found.layer, found.value
    shapes = tuple(each.shape if is_float(each) else None for each in _arguments(found))
    return Site(
        layer.path,
        found.output,
        layer.kind,
        layer.name,
        value.shape,
        str(value.dtype),
        shapes,
        layer.is_sum,
        calls=1,
        in_transform=layer.in_transform,
    )


def _arguments(found: LayerOutput) -> tuple[Any, ...]:
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
    all_sites: Sequence[Site], layers: Layers, others: Sequence[str] = ()
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
    chosen = matching_layers(layers, known)
    return tuple(
        site for site, pair in zip(all_sites, names, strict=True) if not chosen.isdisjoint(pair)
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
        def tap(found: LayerOutput) -> Array:
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


def require_layers(network: Network, taker: str) -> None:
    """Raise InputError for a function, whose layers cannot be seen."""
    if isinstance(network.module, Adapter) and not network.module.has_layers:
        raise InputError(
            f"{name_of(network)} is a function, which has no layers; {taker} takes a linen module, "
            "or the network of from_nnx(module)"
        )
