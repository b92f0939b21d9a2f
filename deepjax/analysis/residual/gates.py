"""Where a network can be cut: its residual branches, and gates that take them out of the forward or out of the backward pass.

A residual sum is a module whose call takes (shortcut, branch), two arrays of the output's shape, as `trace` knows it. A gate
is an argument of what is compiled, so that every choice of branches runs the same program; the network is not changed.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.calls import bind_sum_arguments, path_of
from deepjax.analysis.core.module import Batch, Loss, Model, as_static, name_of, run, shapes_of
from deepjax.analysis.core.taps import Site, sites
from deepjax.analysis.jaxpr.module_paths import steps
from deepjax.errors import InputError, require, unknown_name_error


def residual_sites(
    model: Model,
    variables: Any,
    batch: Batch,
    loss: Loss,
    train: bool,
    modules: Sequence[str] | None = None,
) -> tuple[Site, ...]:
    """The residual sums, or the named modules, in the order of the forward pass; nothing is computed.

    Raises InputError where there are none, where a module does not keep its input's shape, and where a gate cannot reach them.
    """
    single = [
        site
        for site in sites(model, variables, batch, loss, train)
        if site.path and not site.output
    ]
    everywhere = {site.layer: site for site in single}
    keepers = [
        path
        for path, site in everywhere.items()
        if site.arguments[:1] == (site.shape,) and not site.is_sum
    ]
    if modules is None:
        chosen = tuple(
            site for site in single if site.is_sum and set(site.arguments) <= {site.shape}
        )
        such = f", such as {', '.join(keepers[:3])}" if keepers else ""
        if not chosen:
            raise InputError(
                f"{name_of(model)} has no residual sums: no module's call takes (shortcut, branch) of one shape; "
                f"allowed: a residual network, or for lesions modules= that keep their input's shape{such}"
            )
    else:
        require(
            len(modules) > 0, "modules", modules, "paths of modules that keep their input's shape"
        )
        for name in modules:
            if name not in everywhere:
                raise unknown_name_error("module", name, keepers)
            require(
                name in keepers, "module", name, "one that keeps its input's shape, unlike this one"
            )
        chosen = tuple(site for site in single if site.layer in modules)
    calls = Counter(site.layer for site in single)
    if apart := [site.layer for site in chosen if calls[site.layer] > 1]:
        raise InputError(
            f"{', '.join(apart)} is called with several shapes, whose gates cannot be told apart; allowed: one shape"
        )
    inside = tuple(site.layer for site in chosen if site.in_transform)
    hidden = (
        _repeated(as_static(model), train, inside, *shapes_of((variables, batch))) if inside else ()
    )
    if hidden:
        raise InputError(
            f"{', '.join(hidden)} runs several times inside nn.scan or a loop, where all runs would have one gate; "
            "allowed: blocks written out one by one, in deepjax.models scan=False"
        )
    return chosen


def gate_names(places: tuple[Site, ...]) -> tuple[str, ...]:
    """One a gate: the path, and of a module called several times also which call."""
    return tuple(
        site.layer if site.calls == 1 else f"{site.layer}#{i + 1}"
        for site in places
        for i in range(site.calls)
    )


def ablate_branches(places: tuple[Site, ...], keep: Any) -> Any:
    """In this context, where `keep` is False a sum's branch is 0 and a module that is no sum returns its input.

    keep: (gates,) booleans. Where it is True the module does exactly what it always does.
    """
    return _gated(places, keep, _removed)


def route_gradient(places: tuple[Site, ...], passes: Any) -> Any:
    """In this context the backward pass of a sum goes to the shortcut where passes[i, 0], to the branch where passes[i, 1].

    passes: (gates, 2) booleans. The forward pass knows nothing of them: under `jax.vmap` over them it is one for all.
    """
    return _gated(places, passes, _routed)


@functools.lru_cache(maxsize=256)
def _repeated(
    model: Model, train: bool, paths: tuple[str, ...], structure: Any, shapes: tuple[Any, ...]
) -> tuple[str, ...]:
    """Those that run more than once, as the traced computation tells: linen's interception sees a scan's body as one call."""
    variables, batch = jax.tree.unflatten(structure, shapes)

    def mark(
        function: Any, positional: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        with jax.named_scope(f"<{path_of(context.module)}>"):
            return function(*positional, **keywords)

    with nn.intercept_methods(mark):
        traced = jax.make_jaxpr(lambda variables, batch: run(model, variables, batch, train)[0])(
            variables, batch
        )
    times: dict[str, int] = {}
    for step in steps(traced.jaxpr):
        runs_here = (
            2 if step.unbounded else step.times
        )  # in a `while` that its data end: as good as several
        times[step.path] = max(runs_here, times.get(step.path, 0))

    def runs(path: str) -> int:  # the least, for a scan inside the module is no matter
        return min(
            (count for at, count in times.items() if f"{at}/".startswith(f"{path}/")), default=1
        )

    return tuple(path for path in paths if runs(path) > 1)


Act = Callable[[Any, tuple[Any, ...], dict[str, Any], Any, bool], Any]
"""(the call, its arguments, its keywords, its gate, whether a sum) -> what the module is to return."""


def _gated(places: tuple[Site, ...], gates: Any, act: Act) -> Any:
    """An interceptor that hands the calls of these modules to `act`, each with its own row of `gates`."""
    starts = itertools.accumulate((site.calls for site in places), initial=0)
    known = {site.layer: (site, start) for site, start in zip(places, starts, strict=False)}
    calls: Counter[str] = Counter()

    def intercept(
        function: Any, positional: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        path = path_of(context.module)
        if path not in known or context.method_name != "__call__":
            return function(*positional, **keywords)
        site, start = known[path]
        number = calls[path] % site.calls  # inside nn.remat a body may be traced again
        calls[path] += 1
        if site.is_sum:
            positional, keywords = bind_sum_arguments(context.module, positional, keywords), {}
        return act(function, positional, keywords, gates[start + number], site.is_sum)

    return nn.intercept_methods(intercept)


def _removed(
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
    """x, whose gradient passes or is 0. The forward pass knows nothing of it, and so is one for a batch of paths."""
    return x


def _shut(passes: Array, cotangent: Array) -> tuple[Array, None]:
    return jnp.where(passes, cotangent, jnp.zeros_like(cotangent)), None


_gradient_gate.defvjp(lambda x, passes: (x, passes), _shut)
