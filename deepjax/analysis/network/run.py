"""One way to run any linen module on a batch, whatever its mode arguments and state."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.losses import Batch, describe_outputs
from deepjax.analysis.network.adapter import Adapter, Inputs
from deepjax.analysis.network.inputs import inputs_of
from deepjax.analysis.network.network import (
    Model,
    Network,
    mode_of,
    name_of,
    network_of,
    refusable_kwargs,
)
from deepjax.analysis.network.nn_jit import retraced
from deepjax.analysis.network.requirements import Requirements, bind_axes, find_requirements
from deepjax.errors import InputError

Rngs = Mapping[str, Array] | Array | None
"""Keys by name of the random stream; or one key for all streams; None: `jax.random.key(0)`."""
Capture = bool | Callable[[Any, str], bool]

OWN_KEY = ("dropout", "key", "rng")
"""Streams that start at the given key: the usual one of modules, and the argument of a function."""


def shapes_of(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """(structure, shapes of the leaves), as a cache key.

    Raises InputError for a leaf that is not an array.
    """
    leaves, structure = jax.tree.flatten(tree)
    try:
        return structure, tuple(map(_shape_of, leaves))
    except TypeError as error:
        wrong = sorted({type(leaf).__name__ for leaf in leaves if not hasattr(leaf, "dtype")})
        raise InputError(
            f"variables or batch hold a {', '.join(wrong)}; allowed: arrays"
        ) from error


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    # The usual case, and the fast one: jnp.result_type takes microseconds per leaf.
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def stream_key(key: Array, name: str) -> Array:
    """The key of a random stream: for `OWN_KEY` the key itself, for others folded with the name."""
    return key if name in OWN_KEY else jax.random.fold_in(key, zlib.crc32(name.encode()))


def as_key(key: Any) -> Array:
    """The key; `jax.random.key(0)` for None. Raises InputError for anything but a key."""
    if key is None:
        return jax.random.key(0)
    if isinstance(key, Array) and (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32
    ):
        return key
    hint = f", such as jax.random.key({key})" if isinstance(key, int) else ""
    raise InputError(f"key is {key!r}; allowed: None, or a key of jax.random{hint}")


def batch_key(key: Array, index: Any, count: int) -> Array:
    """The key of one of several batches; of a single batch the key itself."""
    return key if count == 1 else jax.random.fold_in(key, index)


def apply_module(
    model: Model,
    variables: Any,
    batch: Batch,
    train: bool,
    rngs: Rngs = None,
    sow: tuple[str, ...] = (),
    capture: Capture = False,
) -> tuple[Any, Any]:
    """(outputs, changed collections) of the module's call: how every instrument runs a network.

    `train` sets the mode arguments of the network (`mode_of`), and makes all state mutable.
    Requirements of the call are found by abstract evaluation and supplied: keys of random streams
    that `rngs` lacks, mutable collections in evaluation, unbound axes with size 1.
    sow: collections that it may sow into; capture: also the output of each module, or of methods
    chosen by (module, name), into "intermediates".
    """
    network = network_of(model)
    inputs, variables = inputs_of(network, batch), dict(nn.meta.unbox(variables))
    find = functools.partial(requirements_of, network, variables, inputs, train)
    apply = functools.partial(call_module, network, variables, inputs, train, rngs, sow, capture)
    try:
        return apply(find())
    except NameError:  # an axis was bound when the requirements were found, and no longer is
        return apply(find(again=True))


def call_module(
    network: Network,
    variables: dict[str, Any],
    inputs: Inputs,
    train: bool,
    rngs: Rngs,
    sow: tuple[str, ...],
    capture: Capture,
    requirements: Requirements,
) -> tuple[Any, Any]:
    """`apply_module` with known requirements."""
    mode = mode_of(network, train)
    given = rngs if isinstance(rngs, Mapping) else {}
    base = jax.random.key(0) if rngs is None or isinstance(rngs, Mapping) else rngs
    # In training always, because a module may ask has_rng("dropout").
    names = ("dropout", *requirements.streams) if train else requirements.streams
    keys = {name: stream_key(base, name) for name in names} | dict(given)
    mutable = [name for name in variables if name != "params"] if train else []
    lost = {*requirements.ignored, *requirements.refused}
    kwargs: dict[str, Any] = {
        name: value for name, value in mode.kwargs.items() if name not in lost
    }

    def call() -> tuple[Any, Any]:
        kept = [*dict.fromkeys((*mutable, *requirements.written, *sow))]
        if isinstance(mode.module, Adapter):
            return mode.module.apply(variables, inputs, keys, kept, kwargs)
        apply = nn.apply(retraced, mode.module, mutable=kept, capture_intermediates=capture)
        return apply(variables, *inputs.args, **inputs.kwargs, rngs=keys, **kwargs)

    outputs, changed = bind_axes(call, requirements.axes)
    return _selected(outputs, network), changed


def requirements_of(
    network: Network,
    variables: dict[str, Any],
    inputs: Inputs,
    train: bool,
    again: bool = False,
) -> Requirements:
    """Requirements of the call, found at the first call with such shapes, without given keys."""
    memo = memo_of(network, train, *shapes_of((variables, inputs)))
    if memo[0] is None or again:
        attempt = functools.partial(trace_call, network, variables, inputs, train)
        _, memo[0] = find_requirements(
            attempt, memo[0] or Requirements(), refusable_mode_kwargs(network, train)
        )
    return memo[0]


def refusable_mode_kwargs(network: Network, train: bool) -> frozenset[str]:
    """Mode arguments that the call may refuse."""
    return refusable_kwargs(network, mode_of(network, train).kwargs)


def trace_call(
    network: Network,
    variables: dict[str, Any],
    inputs: Inputs,
    train: bool,
    requirements: Requirements,
) -> Any:
    """Shapes of the outputs, with these requirements."""

    def call(variables: dict[str, Any], inputs: Inputs) -> Any:
        return call_module(network, variables, inputs, train, None, (), False, requirements)[0]

    return jax.eval_shape(call, variables, inputs)


@functools.lru_cache(maxsize=1024)
def memo_of(
    network: Network, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> list[Requirements | None]:
    """A cell for the requirements of calls in this mode with these shapes."""
    return [None]


def _selected(outputs: Any, network: Network) -> Any:
    """The part of the outputs that `Network.output` selects; raises InputError if absent."""
    choice = network.output
    if choice is None or callable(choice):
        return outputs if choice is None else choice(outputs)
    for key in choice if isinstance(choice, tuple) else (choice,):
        try:
            named = isinstance(key, str) and not isinstance(outputs, Mapping)
            outputs = getattr(outputs, str(key)) if named else outputs[key]
        except (AttributeError, LookupError, TypeError) as error:
            raise InputError(
                f"output is {choice!r}; {name_of(network)} returns {describe_outputs(outputs)}"
            ) from error
    return outputs


def mode_text(model: Model, variables: Any, batch: Batch, train: bool) -> str:
    """The mode in which the network runs on such a batch, for results to print.

    "evaluation mode (deterministic=True)", or "no training switch found; called as it is"; and
    which random streams and collections it uses. Cached after `validate_inputs` or `run`.
    """
    network, unboxed = network_of(model), dict(nn.meta.unbox(variables))
    requirements = requirements_of(network, unboxed, inputs_of(network, batch), train)
    lost = {*requirements.ignored, *requirements.refused}
    switches = [
        each for each in mode_of(network, train).switches if each.partition("=")[0] not in lost
    ]
    name = "training" if train else "evaluation"
    known = f"{name} mode ({', '.join(switches)})"
    parts = [known if switches else "no training switch found; called as it is"]
    if not train and requirements.streams:
        parts.append(f"draws from the random stream {_listed(requirements.streams)} in evaluation")
    if not train and requirements.written:
        parts.append(f"writes the collection {_listed(requirements.written)} in evaluation")
    if requirements.ignored:
        parts.append(
            f"{', '.join(requirements.ignored)} does not reach it through nn.vmap or nn.scan"
        )
    if requirements.refused:
        parts.append(
            f"{', '.join(requirements.refused)} does not reach the module inside that takes it"
        )
    if requirements.axes:
        parts.append(f"axis {_listed(requirements.axes)} bound with size 1")
    return "; ".join(parts)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
