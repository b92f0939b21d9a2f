"""Measuring at the outputs of an unmodified linen module's layers, in the pass that computes the parameters' gradients.

Linen's method interception sends each tapped output through an identity that has another argument, the slot: zeros. In the backward
pass the identity gives its slot as cotangent whatever was measured of the output and is measured of its cotangent, so that
differentiating the loss with respect to the slots, together with the parameters, returns all measurements. Being gradients they
leave `nn.remat`, `nn.jit` and `nn.scan` as any gradient does, and add up over the runs of a scanned block or the calls of a shared
layer.
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
from jax.extend.core import ClosedJaxpr, Jaxpr

from deepjax.analysis.core.batch import require_one
from deepjax.analysis.core.calls import Ended, is_float, is_sum, watched
from deepjax.analysis.core.cotangent_slot import probe
from deepjax.analysis.core.module import (
    Batch,
    Loss,
    Model,
    Rngs,
    cross_entropy,
    entry,
    hashable,
    loss_of,
    validate_inputs,
)
from deepjax.errors import InputError, unknown_name_error


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured; both return trees of arrays that may be added up over calls."""

    output: Callable[[tuple[Any, ...], Array], Any]
    """(positional arguments of the layer's call, its output) -> tree, in the forward pass."""
    cotangent: Callable[[Array], Any]
    """(the loss's gradient with respect to the output) -> tree, in the backward pass."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer's output. Calls with other shapes are another site, and so are two modules that share a scope."""

    path: tuple[str, ...]
    """Of the module, as in the parameters; () is the network."""
    output: str
    """Which of its outputs: "" for the one array that `__call__` returns, else such as "[0]" or ".encode()['mean']"."""
    kind: str
    """Name of the module's class."""
    name: str | None
    """The module's own, which is not the path's where it shares a scope."""
    shape: tuple[int, ...]
    dtype: str
    arguments: tuple[tuple[int, ...] | None, ...]
    """Shapes of the positional arguments; None for one that is no array of floats."""
    is_sum: bool
    """Whether the call's arguments are named (shortcut, branch), by which a residual block shows what it adds up."""
    calls: int = dataclasses.field(compare=False)
    """How often the network calls it; runs of a scanned body count once."""
    inside: bool = dataclasses.field(compare=False)
    """Whether it is called inside a transformation of linen (scan, remat, jit, vmap)."""
    in_custom_vjp: bool = dataclasses.field(default=False, compare=False)
    """Whether a call is inside `nn.custom_vjp`, whose backward pass knows of no slot: nothing is measured there."""

    @property
    def layer(self) -> str:
        """The path as it is shown: "stage1_block1/conv1"; "" is the network."""
        return "/".join(self.path)


@dataclasses.dataclass(frozen=True, eq=False)
class Tap:
    """A layer's output, and the loss's gradient with respect to it; both have the output's shape."""

    activation: Array
    gradient: Array


def sites(
    model: Model, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None
) -> tuple[Site, ...]:
    """Every array of real or complex floats that a layer returns, in the order in which the forward pass ends their calls.

    Nothing is computed. Raises InputError where the batch does not fit the network.
    """
    return _sites(
        hashable(model), loss, train, *validate_inputs(model, variables, batch, loss, train, rngs)
    )


@functools.lru_cache(maxsize=256)
def _sites(
    model: Model, loss: Loss, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[Site, ...]:
    found: dict[Site, Site] = {}
    variables, batch, rngs = jax.tree.unflatten(structure, shapes)
    validate_inputs(model, variables, batch, loss, train, rngs)

    marked: list[Site] = []

    def note(ended: Ended) -> Array:
        site = _site(ended)
        known = found.pop(site, None)
        again = known.calls if known and not site.inside else 0
        found[site] = dataclasses.replace(site, calls=1 + again)
        marked.append(site)
        return checkpoint_name(ended.value, f"{_MARK}{len(marked) - 1}")

    def forward(variables: Any, batch: Batch, rngs: Rngs) -> Array:
        with watched(note):
            return loss_of(model, variables, batch, loss, train, rngs)

    names = _names_in_custom_vjp(jax.make_jaxpr(forward)(variables, batch, rngs).jaxpr)
    hidden = {site for place, site in enumerate(marked) if f"{_MARK}{place}" in names}
    return tuple(dataclasses.replace(site, in_custom_vjp=site in hidden) for site in found.values())


_MARK = "site "  # before its number, in the name of the identity that marks an output


def _names_in_custom_vjp(jaxpr: Jaxpr, inside: bool = False) -> set[str]:
    """Names that `checkpoint_name` gave to values inside a custom_vjp."""
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


def _site(ended: Ended) -> Site:
    module, value = ended.module, ended.value
    shapes = tuple(each.shape if is_float(each) else None for each in _arguments(ended))
    kind, summed = type(module).__name__, is_sum(module)
    place = (module.path, ended.output, kind, module.name)
    return Site(*place, value.shape, str(value.dtype), shapes, summed, calls=1, inside=ended.inside)


def _arguments(ended: Ended) -> tuple[Any, ...]:
    """Up to the last array of floats: switches that follow make no other site."""
    last = max((place for place, each in enumerate(ended.arguments) if is_float(each)), default=-1)
    return ended.arguments[: last + 1]


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
    """What each site is beside its layer: `Site.output`, and where several of one layer have the same, what they differ in."""
    alike: dict[Any, list[Site]] = defaultdict(list)
    for site in at:
        alike[site.path, site.output].append(site)
    told = {key: _differing(group) for key, group in alike.items()}
    return tuple(
        site.output
        + (
            f" ({', '.join(of(site) for of in features)})"
            if (features := told[site.path, site.output])
            else ""
        )
        for site in at
    )


def _differing(group: Sequence[Site]) -> list[Callable[[Site], str]]:
    """The first features by which no two are alike; none for a single site."""
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
    """The sites of these layers, in their order in the network; None: all.

    Layers are named by path, which takes all outputs, or by path and label. `others`: names that have no site. Raises InputError
    for any other name.
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
    """(loss, gradients of the parameters, measurements by site): one forward and one backward pass; call it inside jit.

    A layer from which nothing leads to the loss measures zeros. A derivative that the network takes in its forward pass counts as
    any other operation: a layer's gradient is the loss's, along all its ways. Parameters of integers have the gradient float0.
    """
    places = {site: place for place, site in enumerate(at) if not site.in_custom_vjp}
    slots = [_slot(measure, site) for site in at]
    rest = {name: value for name, value in dict(variables).items() if name != "params"}

    def forward(params: Any, slots: list[Any]) -> Array:
        def tap(ended: Ended) -> Array:
            place = places.get(_site(ended))
            if place is None:
                return ended.value
            return probe(
                ended.value,
                slots[place],
                measure.output(_arguments(ended), ended.value),
                measure.cotangent,
            )

        with watched(tap):
            return loss_of(model, {"params": params, **rest}, batch, loss, train, rngs)

    gradient = jax.value_and_grad(forward, argnums=(0, 1), allow_int=True)
    value, (gradients, measurements) = gradient(variables["params"], slots)
    return value, gradients, measurements


def _slot(measure: Measure, site: Site) -> Any:
    """Zeros in the form of all that is measured there."""
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
    """Activations of the named layers, and the loss's gradient with respect to them, of any linen module, unmodified.

    A layer that returns several arrays has several entries, "lstm[0]" and "lstm[1]"; each of them can be asked for by name.
    Compiled once for a network, loss and shapes; inside `jax.jit` too, where what a layer runs cannot be looked at.
    Cost: one forward and one backward pass; memory: twice the outputs asked for.
    Raises InputError for an unknown layer (naming the nearest), for one that is called more than once or inside `nn.scan` or
    `nn.vmap` (whose runs would add up; `trace` shows those), for one inside `nn.custom_vjp`, for one from which nothing leads to
    the loss (its output would be zeros), for a list of batches, and for a batch or a loss that does not fit.
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
                f"layer {name!r} is called {site.calls} times; taps takes layers called once; trace() shows it"
            )
    values = _taps(model, variables, batch, rngs, loss=loss, train=train, at=at)
    for name, ((_, runs), _) in zip(names, values, strict=True):
        if isinstance(runs, Tracer):
            continue
        if runs > 1:
            raise InputError(
                f"layer {name!r} runs {runs:.0f} times inside a scan or vmap; taps takes layers run once; trace() shows it"
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
    return loss_grads_and_measurements(model, variables, batch, loss, train, rngs, at, _WHOLE)[2]


_WHOLE = Measure(
    lambda arguments, output: (output, jnp.ones((), jnp.float32)), lambda cotangent: cotangent
)
