"""Gates at a network's residual branches, which remove them from the forward or the backward pass.

A residual sum is a module of linen or NNX whose call takes (shortcut, branch), two arrays of the
output's shape, as in `trace`. A gate is an argument of the compiled program, so that every choice
of branches runs the same program; the network is unmodified.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.layers import Layers, matching_layers
from deepjax.analysis.core.options import Progress
from deepjax.analysis.jaxpr.module_paths import steps
from deepjax.analysis.network.calls import bind_sum_arguments, intercept_network
from deepjax.analysis.network.layer import Layer, Method
from deepjax.analysis.network.module import (
    Batch,
    Loss,
    Model,
    apply_module,
    name_of,
    network_of,
    shapes_of,
    stream_key,
)
from deepjax.analysis.network.taps import Site, sites
from deepjax.errors import InputError, require


def residual_sites(
    model: Model,
    variables: Any,
    batch: Batch,
    loss: Loss,
    train: bool,
    layers: Layers = None,
) -> tuple[Site, ...]:
    """The residual sums, or the given layers, in forward order; nothing is computed.

    layers: residual sums, and modules that keep their input's shape; a pattern selects from these.
    Raises InputError if there are none, if a named layer is neither, and if a gate cannot reach
    them.
    """
    found = [
        site
        for site in sites(model, variables, batch, loss, train)
        if site.path and not site.output
    ]
    selected = _residual_sums(model, found) if layers is None else _named(found, layers)
    calls = Counter(site.layer for site in found)
    if ambiguous := [site.layer for site in selected if calls[site.layer] > 1]:
        raise InputError(
            f"{', '.join(ambiguous)} is called with several shapes, whose gates cannot be "
            "distinguished; allowed: one shape"
        )
    inside = tuple(site.layer for site in selected if site.in_transform)
    if inside:
        repeated = _repeated(network_of(model), train, inside, *shapes_of((variables, batch)))
        if repeated:
            raise InputError(
                f"{', '.join(repeated)} runs several times inside nn.scan, nnx.scan or a loop, "
                "where all runs would have one gate; allowed: unrolled blocks, in deepjax.models "
                "scan=False"
            )
    return selected


def _residual_sums(model: Model, found: Sequence[Site]) -> tuple[Site, ...]:
    selected = tuple(site for site in found if _is_residual_sum(site))
    if not selected:
        outside = [site for site in _last(found).values() if not site.in_transform]
        names = [site.layer for site in outside if _keeps_shape(site)]
        such = f", such as {', '.join(names[:3])}" if names else ""
        raise InputError(
            f"{name_of(model)} has no residual sums: no module's call takes (shortcut, branch) of "
            "one shape; allowed: a residual network, or for lesions layers= that keep their "
            f"input's shape{such}"
        )
    return selected


def _named(found: Sequence[Site], layers: Layers) -> tuple[Site, ...]:
    known = _last(found)
    fit = [path for path, site in known.items() if _is_residual_sum(site) or _keeps_shape(site)]
    for name in (layers,) if isinstance(layers, str) else layers or ():
        allowed = "one that keeps its input's shape, unlike this one"
        require(name in fit or name not in known, "layer", name, allowed)
    selected = matching_layers(layers, fit)
    return tuple(site for site in found if site.layer in selected)


def _last(found: Sequence[Site]) -> dict[str, Site]:
    return {site.layer: site for site in found}


def _is_residual_sum(site: Site) -> bool:
    return site.is_sum and set(site.arguments) <= {site.shape}


def _keeps_shape(site: Site) -> bool:
    """Whether it is a module, other than a sum, that returns an array of its input's shape."""
    return site.arguments[:1] == (site.shape,) and not site.is_sum


@functools.lru_cache(maxsize=256)
def _repeated(
    model: Model, train: bool, paths: tuple[str, ...], structure: Any, shapes: tuple[Any, ...]
) -> tuple[str, ...]:
    """Those of the paths that run more than once.

    Read from the jaxpr, since linen's interception sees a scan's body as one call.
    """
    variables, batch = jax.tree.unflatten(structure, shapes)

    def mark(layer: Layer, method: Method, call: Any, *arguments: Any) -> Any:
        with jax.named_scope(f"<{layer.label}>"):
            return call()

    with intercept_network(mark):
        traced = jax.make_jaxpr(
            lambda variables, batch: apply_module(model, variables, batch, train)[0]
        )(variables, batch)
    runs: dict[str, int] = {}
    for step in steps(traced.jaxpr):
        # A `while` loop of unknown length counts as several runs.
        count = 2 if step.unbounded else step.times
        runs[step.path] = max(count, runs.get(step.path, 0))

    def module_runs(path: str) -> int:
        # The minimum, since a scan inside the module does not matter.
        inside = (count for at, count in runs.items() if f"{at}/".startswith(f"{path}/"))
        return min(inside, default=1)

    return tuple(path for path in paths if module_runs(path) > 1)


def gate_names(gated: tuple[Site, ...]) -> tuple[str, ...]:
    """One name per gate: the path, and the number of the call if there are several."""
    return tuple(
        site.layer if site.calls == 1 else f"{site.layer}#{i + 1}"
        for site in gated
        for i in range(site.calls)
    )


def ablate_branches(gated: tuple[Site, ...], keep: Any) -> Any:
    """Context: where `keep` is False, a sum's branch is 0 and another module returns its input.

    keep: (gates,) booleans. Where it is True the module is unchanged.
    """
    return _gated(gated, keep, _ablated)


def route_gradient(gated: tuple[Site, ...], passes: Any) -> Any:
    """Context: the backward pass of sum i enters the shortcut and the branch as passes[i] says.

    passes: (gates, 2) booleans. The forward pass does not depend on them: `jax.vmap` over them runs
    it once.
    """
    return _gated(gated, passes, _routed)


def subset_generator(key: Array) -> np.random.Generator:
    """For `sample_subsets`; independent of the network's random streams, which `key` starts too."""
    own = stream_key(key, "subsets of residual branches")
    return np.random.default_rng(np.asarray(jax.random.key_data(own)))


def sample_subsets(
    n: int, size: int, samples: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """All subsets of range(n) of that size, or `samples` random ones if there are more."""
    if math.comb(n, size) <= samples:
        return list(itertools.combinations(range(n), size))
    return [
        tuple(int(i) for i in sorted(rng.choice(n, size, replace=False))) for _ in range(samples)
    ]


def subset_masks(subsets: Iterable[Sequence[int]], n: int) -> np.ndarray:
    """(subsets, n) booleans: whether a subset contains the index."""
    return np.array([np.isin(np.arange(n), subset) for subset in subsets])


def map_gates(
    function: Callable[[np.ndarray], Any], gates: np.ndarray, chunk: int, progress: Progress
) -> np.ndarray:
    """Apply `function`, (chunk, ...) gates -> (chunk, ...) numbers, to all rows of `gates`.

    The last chunk is padded, so that one shape is compiled.
    """
    results: list[np.ndarray] = []
    for start in range(0, len(gates), chunk):
        part = gates[start : start + chunk]
        padded = np.concatenate([part, np.repeat(part[-1:], chunk - len(part), axis=0)])
        results.append(np.asarray(jax.device_get(function(padded)))[: len(part)])
        if progress:
            progress(start + len(part), len(gates))
    return np.concatenate(results)


Act = Callable[[Any, tuple[Any, ...], dict[str, Any], Any, bool], Any]
"""(the call, its arguments, its keywords, its gate, whether it is a sum) -> what the module
returns."""


def _gated(gated: tuple[Site, ...], gates: Any, act: Act) -> Any:
    """An interceptor that passes calls of these modules to `act` with their row of `gates`."""
    starts = itertools.accumulate((site.calls for site in gated), initial=0)
    known = {site.layer: (site, start) for site, start in zip(gated, starts, strict=False)}
    calls: Counter[str] = Counter()

    def around(layer: Layer, method: Method, call: Any, positional: Any, keywords: Any) -> Any:
        path = layer.label
        if path not in known or method.name != "__call__":
            return call()
        site, start = known[path]
        number = calls[path] % site.calls  # inside nn.remat a body may be traced again
        calls[path] += 1
        if site.is_sum:
            positional, keywords = bind_sum_arguments(layer, positional, keywords), {}
        return act(call.func, positional, keywords, gates[start + number], site.is_sum)

    return intercept_network(around)


def _ablated(
    function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], keep: Any, is_sum: bool
) -> Any:
    if is_sum:
        shortcut, branch = arguments
        return function(shortcut, jnp.where(keep, branch, jnp.zeros_like(branch)))
    output = function(*arguments, **keywords)
    return jnp.where(keep, output, arguments[0].astype(output.dtype))


def _routed(
    function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], passes: Any, is_sum: bool
) -> Any:
    return function(*(_gradient_gate(value, passes[i]) for i, value in enumerate(arguments)))


@jax.custom_vjp
def _gradient_gate(x: Array, passes: Array) -> Array:
    """The identity, whose gradient is passed on or 0; the forward pass is one for all paths."""
    return x


def _gate_backward(passes: Array, cotangent: Array) -> tuple[Array, None]:
    return jnp.where(passes, cotangent, jnp.zeros_like(cotangent)), None


_gradient_gate.defvjp(lambda x, passes: (x, passes), _gate_backward)
