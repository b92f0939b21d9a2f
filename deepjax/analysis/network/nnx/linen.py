"""Linen modules inside of an NNX module (`nnx.bridge.ToNNX`): called as linen networks are."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from flax.core.scope import in_filter
from flax.traverse_util import flatten_dict
from jax import Array

from deepjax.analysis.network.layer import Layer, Method
from deepjax.analysis.network.nnx.calls import call_intercepted, is_intercepted
from deepjax.analysis.network.nnx.run import Run, current_run, is_inside_transform, mark

Path = tuple[str, ...]
_FLAG = "deepjax_nnx_run"


class _Flag:
    """Of the scopes of one call of a linen module; another hash each time: see `nn_jit`."""

    _hashes = itertools.count()

    def __hash__(self) -> int:
        return next(self._hashes)


def call_linen(module: nnx.Module, run: Run) -> None:
    """Let the linen modules inside follow the run, and let interceptors see their layers.

    They take the run's random keys, change and sow into its collections only, and the paths of
    their layers are those in the parameters. `module` must belong to nobody else.
    """
    for path, each in list(nnx.iter_modules(module)):
        if isinstance(each, nnx.bridge.ToNNX):
            mark(each, run, path)
            linen = each.to_nnx__module
            own = linen.clone()
            apply = functools.partial(_apply, linen, tuple(map(str, path)))
            object.__setattr__(own, "apply", apply)
            object.__setattr__(each, "to_nnx__module", own)


def call_of(module: nnx.Module) -> Callable[..., Any]:
    """The function that takes the inputs: for a plain ToNNX that of the linen module."""
    if is_plain(module):
        return type(module.to_nnx__module).__call__  # type: ignore[attr-defined]
    return type(module).__call__


def is_plain(module: nnx.Module) -> bool:
    """Whether it is a linen module that is called as it is, without a method of its own."""
    bridge = nnx.bridge.ToNNX
    return isinstance(module, bridge) and type(module).__call__ is bridge.__call__


def _apply(
    linen: nn.Module,
    path: Path,
    variables: Any,
    *args: Any,
    rngs: dict[str, Array],
    method: Any,
    mutable: Any,
    **kwargs: Any,
) -> Any:
    """In place of `linen.apply`, as ToNNX calls it."""
    run = current_run()
    if run is None:
        return linen.apply(variables, *args, rngs=rngs, method=method, mutable=mutable, **kwargs)
    kept = [name for name in run.mutable if in_filter(mutable, name)]
    sown = () if is_inside_transform(run) else run.sown
    apply = functools.partial(
        linen.apply,
        rngs=_keys(run, path, rngs),
        mutable=[*kept, *sown],
        method=_seen(method, linen, path),
    )
    outputs, changed = apply(variables, *args, **kwargs)
    for name in sown:
        flat = flatten_dict(dict(changed).get(name, {}))
        run.sown[name] |= {(*path, *inner): value for inner, value in flat.items()}
    updates = {name: changed[name] for name in kept if name in changed}
    return outputs if mutable is False else (outputs, updates)


def _keys(run: Run, path: Path, own: Mapping[str, Array]) -> dict[str, Array]:
    """The run's keys; inside of an NNX network mixed with those of the module, if it has any."""
    if not path:
        return dict(run.keys)
    keys = {name: own.get(name, own.get("params")) for name in run.keys}
    return {
        name: jax.random.fold_in(run.keys[name], jax.random.bits(key, dtype="uint32"))
        for name, key in keys.items()
        if key is not None
    }


def _seen(method: Any, linen: nn.Module, path: Path) -> Callable[..., Any]:
    """The method, with layers that interceptors see."""
    if method is None or isinstance(method, str):
        method = getattr(type(linen), method or "__call__")
    function, flag = getattr(method, "__func__", method), _Flag()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        scope: Any = module.scope
        scope.flags = {**scope.flags, _FLAG: flag}
        bound = module.copy(parent=scope.rewound())
        with nn.intercept_methods(functools.partial(_intercept, flag, path)):
            return function(bound, *args, **kwargs)

    return call if is_intercepted() else function


def _intercept(
    flag: _Flag,
    path: Path,
    function: Any,
    arguments: Any,
    keywords: Any,
    context: nn.module.InterceptorContext,
) -> Any:
    module, run = context.module, current_run()
    is_layer = module.scope is not None and module.scope.get_flag(_FLAG, None) is flag
    if run is None or not is_layer:
        return function(*arguments, **keywords)
    inside, full = is_inside_transform(run), (*path, *module.path)
    name = module.name or (full[-1] if full else None)
    # Without the module nothing is taken out of transforms of linen, as it is from linen networks.
    layer = Layer(full, type(module), name, inside, None if inside else module)
    method = Method(context.method_name, context.orig_method.func)
    return call_intercepted(function, layer, method, arguments, keywords)
