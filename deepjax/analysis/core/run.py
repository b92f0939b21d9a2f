"""One way to run any linen module on a batch, whatever its mode arguments and state."""

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.losses import Batch, describe_outputs
from deepjax.analysis.core.network import (
    Model,
    Network,
    as_static,
    mode_of,
    name_of,
    network_of,
    refusable_kwargs,
)
from deepjax.analysis.core.nn_jit import traced_anew
from deepjax.analysis.core.requirements import Requirements, bind_axes, find_requirements
from deepjax.errors import InputError

Rngs = Mapping[str, Array] | Array | None
"""Keys by name of the random stream; or one key for all streams; None: key `Network.seed`."""


def inputs_of(batch: Batch) -> tuple[Any, ...]:
    """The arguments of the network's call."""
    if isinstance(batch, Mapping):
        if "image" not in batch:
            raise InputError(
                f"batch has the keys {sorted(batch)}; allowed: 'image' and 'label', or a tuple "
                "(inputs, labels)"
            )
        return (batch["image"],)
    if not isinstance(batch, tuple | list) or len(batch) < 1:
        raise InputError(
            f"batch is a {type(batch).__name__}; allowed: a tuple (inputs, labels), or a dict with "
            "'image' and 'label'"
        )
    return tuple(batch[0]) if isinstance(batch[0], tuple | list) else (batch[0],)


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
    """The key of a random stream: for "dropout" the key itself, for others folded with the name."""
    return key if name == "dropout" else jax.random.fold_in(key, zlib.crc32(name.encode()))


def base_key(model: Model, *fold: Any) -> Array:
    """The key of the network's random streams, with these numbers folded in."""
    return functools.reduce(jax.random.fold_in, fold, jax.random.key(network_of(model).seed))


def apply_module(
    model: Model,
    variables: Any,
    batch: Batch,
    train: bool,
    rngs: Rngs = None,
    sow: tuple[str, ...] = (),
    capture: bool = False,
) -> tuple[Any, Any]:
    """(outputs, changed collections) of the module's call: how every instrument runs a network.

    `train` sets the mode arguments of the network (`mode_of`), and makes all state mutable.
    Requirements of the call are found by abstract evaluation and supplied: keys of random streams
    that `rngs` lacks, mutable collections in evaluation, unbound axes with size 1.
    sow: collections that it may sow into; capture: also the output of each module, into
    "intermediates".
    """
    network, inputs = as_static(network_of(model)), inputs_of(batch)
    variables = dict(nn.meta.unbox(variables))
    find = functools.partial(requirements_of, network, variables, inputs, train)
    apply = functools.partial(call_module, network, variables, inputs, train, rngs, sow, capture)
    try:
        return apply(find())
    except NameError:  # an axis was bound when the requirements were found, and no longer is
        return apply(find(anew=True))


def call_module(
    network: Network,
    variables: dict[str, Any],
    inputs: tuple[Any, ...],
    train: bool,
    rngs: Rngs,
    sow: tuple[str, ...],
    capture: bool,
    requirements: Requirements,
) -> tuple[Any, Any]:
    """`run` with known requirements."""
    mode = mode_of(network, train)
    given = rngs if isinstance(rngs, Mapping) else {}
    base = base_key(network) if rngs is None or isinstance(rngs, Mapping) else rngs
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
        apply = nn.apply(traced_anew, mode.module, mutable=kept, capture_intermediates=capture)
        return apply(variables, *inputs, rngs=keys, **kwargs)

    outputs, changed = bind_axes(call, requirements.axes)
    return _selected(outputs, network), changed


def requirements_of(
    network: Network,
    variables: dict[str, Any],
    inputs: tuple[Any, ...],
    train: bool,
    anew: bool = False,
) -> Requirements:
    """Requirements of the call, found at the first call with such shapes, without given keys."""
    memo = memo_of(network, train, *shapes_of((variables, inputs)))
    if memo[0] is None or anew:
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
    inputs: tuple[Any, ...],
    train: bool,
    requirements: Requirements,
) -> Any:
    """Shapes of the outputs, with these requirements."""

    def call(variables: dict[str, Any], inputs: tuple[Any, ...]) -> Any:
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
    network = as_static(network_of(model))
    requirements = requirements_of(network, dict(nn.meta.unbox(variables)), inputs_of(batch), train)
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
