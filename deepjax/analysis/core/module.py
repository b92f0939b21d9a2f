"""One way to run any linen module on a batch, whatever its switches are called and whatever state it keeps."""

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.image_scale import warn_of_images
from deepjax.analysis.core.losses import (
    Batch,
    Loss,
    cross_entropy,
    described,
    labels_of,
    of_classes,
    require_classes,
)
from deepjax.analysis.core.network import (
    AModel,
    Model,
    Network,
    demanded_switches,
    guessed,
    hashable,
    mode_of,
    name_of,
    network_of,
)
from deepjax.analysis.core.nn_jit import traced_anew
from deepjax.analysis.core.requirements import Needs, bound, satisfied
from deepjax.errors import InputError

__all__ = ["Model", "Network", "cross_entropy", "hashable", "name_of", "network_of", "of_classes"]

Rngs = Mapping[str, Array] | Array | None
"""Keys of random streams by name; or one key that all streams are made from; None: key 0, or `Network.seed`."""


def entry(model: AModel, variables: Any) -> tuple[AModel, dict[str, Any]]:
    """What every instrument works on: the network as a key of what is compiled, and its variables without boxes.

    Boxes are those of `nn.with_partitioning` and the like. Raises InputError as `hashable`, and for variables without "params".
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        given = (
            f"have the collections {sorted(variables)}"
            if isinstance(variables, Mapping)
            else f"are a {type(variables).__name__}"
        )
        raise InputError(
            f"variables {given}; 'params' is missing; allowed: a dict as module.init returns it"
        )
    return hashable(model), dict(nn.meta.unbox(variables))


def initialise(model: Model, inputs: Any, key: Array | None = None) -> Any:
    """The variables of a fresh network, without boxes; also of shapes, under `jax.eval_shape`.

    inputs: an array, or a tuple of them. The call's defaults hold, and what it demands is set to evaluation.
    """
    key = jax.random.key(0) if key is None else key
    network, arguments = (
        network_of(model),
        inputs if isinstance(inputs, tuple | list) else (inputs,),
    )
    demanded: dict[str, Any] = demanded_switches(network)

    def attempt(needs: Needs) -> Any:
        keys = {"params": key, "dropout": key} | {
            name: stream_key(key, name) for name in needs.streams
        }
        kwargs = {name: value for name, value in demanded.items() if name not in needs.refused}
        return bound(
            lambda: nn.init(traced_anew, network.module)(keys, *arguments, **kwargs), needs.axes
        )

    return nn.meta.unbox(satisfied(attempt, guesses=guessed(network, demanded))[0])


def init_variables(model: Model, key: Array, shape: Any) -> dict[str, Any]:
    """A fresh network's "params", and its "batch_stats" where it has them.

    shape: of one float32 array, batch included; or, for other dtypes and several inputs, `jax.ShapeDtypeStruct`s or arrays of
    their shapes: one, or a tuple. One program, compiled once for a network and shape, that persistent caches keep; what
    parameters do not depend on is not in it. Drawn operation by operation, GoogLeNet is 600 programs, each too small to keep:
    16 s in every process, against 7 s and then 1.
    Raises InputError where the network cannot take such inputs.
    """
    is_shape = isinstance(shape, tuple | list) and all(
        isinstance(each, int | np.integer) for each in shape
    )
    structure, shapes = shapes_of(
        jax.ShapeDtypeStruct(tuple(shape), jnp.float32) if is_shape else shape
    )
    try:
        model = hashable(model)
    except InputError:  # a field, such as an array, that cannot be a key: compiled at every call
        return jax.jit(functools.partial(_variables, model, structure=structure, shapes=shapes))(
            key
        )
    return _drawn(model, key, structure, shapes)


def _variables(model: Model, key: Array, structure: Any, shapes: tuple[Any, ...]) -> dict[str, Any]:
    inputs = jax.tree.unflatten(structure, map(_placeholder, shapes))
    try:
        variables = initialise(model, inputs, key)
    except InputError:
        raise
    except (
        Exception
    ) as error:  # whatever linen, JAX or the network itself raises of shapes or dtypes
        given, said = (
            ", ".join(f"{each.dtype}{list(each.shape)}" for each in shapes),
            reason(error).rstrip("."),
        )
        hint = "; for other dtypes give a jax.ShapeDtypeStruct" if "integer" in said else ""
        raise InputError(f"{name_of(model)} cannot take inputs {given}: {said}{hint}") from error
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def _placeholder(shape: jax.ShapeDtypeStruct) -> Array:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape.shape)
    return jnp.zeros(shape.shape, shape.dtype)


_drawn = jax.jit(_variables, static_argnums=(0, 2, 3))


def inputs_of(batch: Batch) -> tuple[Any, ...]:
    """The arguments of the network's call."""
    if isinstance(batch, Mapping):
        if "image" not in batch:
            raise InputError(
                f"batch has the keys {sorted(batch)}; allowed: 'image' and 'label', or a tuple (inputs, labels)"
            )
        return (batch["image"],)
    if not isinstance(batch, tuple | list) or len(batch) < 1:
        raise InputError(
            f"batch is a {type(batch).__name__}; allowed: a tuple (inputs, labels), or a dict with 'image' and 'label'"
        )
    return tuple(batch[0]) if isinstance(batch[0], tuple | list) else (batch[0],)


def stream_key(key: Array, name: str) -> Array:
    """Where the random stream of that name starts, of one key for all: "dropout" at the key itself, others apart from it."""
    return key if name == "dropout" else jax.random.fold_in(key, zlib.crc32(name.encode()))


def base_key(model: Model, *fold: Any) -> Array:
    """The key that the network's random streams are made from, with these numbers folded in."""
    return functools.reduce(jax.random.fold_in, fold, jax.random.key(network_of(model).seed))


def run(
    model: Model,
    variables: Any,
    batch: Batch,
    train: bool,
    rngs: Rngs = None,
    sow: tuple[str, ...] = (),
    capture: bool = False,
) -> tuple[Any, Any]:
    """(outputs, collections that changed) of the module's call: how every instrument runs a network.

    `train` sets the network's switches (`mode_of`), and makes all state mutable: batch norm then normalises by the batch.
    What the call asks for is found by abstract evaluation and supplied: random streams from key 0 by name where `rngs` has
    none, collections that evaluation writes, axes of size 1 for those that are not bound.
    sow: collections that it may sow into; capture: also what each module returns, into "intermediates".
    """
    network, inputs = hashable(network_of(model)), inputs_of(batch)
    variables = dict(nn.meta.unbox(variables))
    find = functools.partial(_needs, network, variables, inputs, train)
    apply = functools.partial(_apply, network, variables, inputs, train, rngs, sow, capture)
    try:
        return apply(find())
    except NameError:  # of an axis that was bound around the call for which the needs were found
        return apply(find(anew=True))


def _apply(
    network: Network,
    variables: dict[str, Any],
    inputs: tuple[Any, ...],
    train: bool,
    rngs: Rngs,
    sow: tuple[str, ...],
    capture: bool,
    needs: Needs,
) -> tuple[Any, Any]:
    mode = mode_of(network, train)
    given = rngs if isinstance(rngs, Mapping) else {}
    base = base_key(network) if rngs is None or isinstance(rngs, Mapping) else rngs
    names = (
        ("dropout", *needs.streams) if train else needs.streams
    )  # in training also for has_rng("dropout")
    keys = {name: stream_key(base, name) for name in names} | dict(given)
    mutable = [name for name in variables if name != "params"] if train else []
    lost = {*needs.ignored, *needs.refused}
    kwargs: dict[str, Any] = {
        name: value for name, value in mode.kwargs.items() if name not in lost
    }

    def call() -> tuple[Any, Any]:
        kept = [*dict.fromkeys((*mutable, *needs.written, *sow))]
        apply = nn.apply(traced_anew, mode.module, mutable=kept, capture_intermediates=capture)
        return apply(variables, *inputs, rngs=keys, **kwargs)

    outputs, changed = bound(call, needs.axes)
    return _selected(outputs, network), changed


def _needs(
    network: Network,
    variables: dict[str, Any],
    inputs: tuple[Any, ...],
    train: bool,
    anew: bool = False,
) -> Needs:
    """What the call needs; the first with such shapes is traced for it, without the keys that a caller gives."""
    memo = _memo(network, train, *shapes_of((variables, inputs)))
    if memo[0] is None or anew:
        attempt = functools.partial(_traced, network, variables, inputs, train)
        _, memo[0] = satisfied(attempt, memo[0] or Needs(), _guesses(network, train))
    return memo[0]


def _guesses(network: Network, train: bool) -> frozenset[str]:
    return guessed(network, mode_of(network, train).kwargs)


def _traced(
    network: Network, variables: dict[str, Any], inputs: tuple[Any, ...], train: bool, needs: Needs
) -> Any:
    def call(variables: dict[str, Any], inputs: tuple[Any, ...]) -> Any:
        return _apply(network, variables, inputs, train, None, (), False, needs)[0]

    return jax.eval_shape(call, variables, inputs)


@functools.lru_cache(maxsize=1024)
def _memo(
    network: Network, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> list[Needs | None]:
    """One place for what calls of the network in this mode, with variables and inputs of these shapes, were found to need."""
    return [None]


def _selected(outputs: Any, network: Network) -> Any:
    """The part of the outputs that `Network.output` names; raises InputError where there is none."""
    choice = network.output
    if choice is None or callable(choice):
        return outputs if choice is None else choice(outputs)
    for key in choice if isinstance(choice, tuple) else (choice,):
        try:
            named = isinstance(key, str) and not isinstance(outputs, Mapping)
            outputs = getattr(outputs, str(key)) if named else outputs[key]
        except (AttributeError, LookupError, TypeError) as error:
            raise InputError(
                f"output is {choice!r}; {name_of(network)} returns {described(outputs)}"
            ) from error
    return outputs


def mode_text(model: Model, variables: Any, batch: Batch, train: bool) -> str:
    """In which mode the network runs on such a batch, for results to print. After `check` or `run` nothing is traced again.

    "evaluation mode (deterministic=True)", or "no training switch found; called as it is"; and what it draws and writes.
    """
    network = hashable(network_of(model))
    needs = _needs(network, dict(nn.meta.unbox(variables)), inputs_of(batch), train)
    lost = {*needs.ignored, *needs.refused}
    switches = [
        each for each in mode_of(network, train).switches if each.partition("=")[0] not in lost
    ]
    name = "training" if train else "evaluation"
    parts = [
        f"{name} mode ({', '.join(switches)})"
        if switches
        else "no training switch found; called as it is"
    ]
    if not train and needs.streams:
        parts.append(f"draws from the random stream {_listed(needs.streams)} in evaluation")
    if not train and needs.written:
        parts.append(f"writes the collection {_listed(needs.written)} in evaluation")
    if needs.ignored:
        parts.append(f"{', '.join(needs.ignored)} does not reach it through nn.vmap or nn.scan")
    if needs.refused:
        parts.append(f"{', '.join(needs.refused)} does not reach the module inside that takes it")
    if needs.axes:
        parts.append(f"axis {_listed(needs.axes)} bound with size 1")
    return "; ".join(parts)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))


def loss_of(
    model: Model, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None
) -> Array:
    """The scalar loss; raises InputError where it is none, or where the batch does not fit the network."""
    return _scalar(loss(run(model, variables, batch, train, rngs)[0], batch), "loss")


def no_loss(outputs: Any, batch: Batch) -> Array:
    """0, for a check of the inputs alone."""
    return jnp.zeros((), jnp.float32)


def _scalar(value: Any, what: str) -> Array:
    if jnp.shape(value) != ():
        raise InputError(
            f"{what} returned the shape {jnp.shape(value)}; allowed: a scalar, such as the mean over the examples"
        )
    if jnp.iscomplexobj(value):
        raise InputError(
            f"{what} returned {value.dtype}; allowed: a real number, such as the mean of |z|^2"
        )
    return value


def validate_inputs(
    model: Model,
    variables: Any,
    batch: Batch,
    loss: Loss,
    train: bool,
    rngs: Rngs = None,
    every: Any = None,
    what: str = "loss",
) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """Raise InputError, in one line, where the network cannot take the batch or the loss is not a scalar; nothing is computed.

    Returns the `shapes_of` (variables without boxes, batch, rngs).
    The answer is kept for the next call with such shapes. Of a loss that is marked by `of_classes`, such as `cross_entropy`,
    labels outside the classes are refused too, unless this is inside `jax.jit`; `every`: batches stacked along leading axes
    of which this one is part, where there are more labels. what: the name of `loss` in messages. Warns of inputs that look like
    pixels that were not normalised, or like (batch, channels, height, width).
    """
    network, variables = entry(network_of(model), variables)
    warn_of_images(inputs_of(batch))
    key = shapes_of((variables, batch, rngs))
    classes = _check(network, loss, train, what, *key)
    if classes is not None:
        require_classes(labels_of(batch if every is None else every), classes)
    return key


@functools.lru_cache(maxsize=64)
def _check(
    network: Network, loss: Loss, train: bool, what: str, structure: Any, shapes: tuple[Any, ...]
) -> int | None:
    """How many classes the labels are of; None: they are none."""
    variables, batch, rngs = jax.tree.unflatten(structure, shapes)
    classes: list[int | None] = []

    def value(variables: Any, batch: Batch, rngs: Rngs, needs: Needs) -> Array:
        outputs, _ = _apply(network, variables, inputs_of(batch), train, rngs, (), False, needs)
        classes.append(_classes(outputs, batch, loss))
        return _scalar(loss(outputs, batch), what)

    def attempt(needs: Needs) -> Any:
        return jax.eval_shape(functools.partial(value, needs=needs), variables, batch, rngs)

    try:
        memo, guesses = (
            _memo(network, train, *shapes_of((variables, inputs_of(batch)))),
            _guesses(network, train),
        )
        known = memo[0] or Needs()
        if isinstance(rngs, Mapping):  # what is asked for shows only without it
            _, known = satisfied(
                functools.partial(_traced, network, variables, inputs_of(batch), train),
                known,
                guesses,
            )
        _, memo[0] = satisfied(attempt, known, guesses)
    except InputError:
        raise
    except (
        Exception
    ) as error:  # whatever linen, JAX or the network itself raises of shapes, collections or dtypes
        if classes:
            raise InputError(
                f"{what} cannot take what {name_of(network)} returns: {reason(error)}"
            ) from error
        given = ", ".join(f"{jnp.shape(value)}" for value in inputs_of(batch))
        raise InputError(
            f"{name_of(network)} cannot take a batch with inputs of shape {given}: {reason(error)}"
        ) from error
    return classes[-1]


def _classes(outputs: Any, batch: Batch, loss: Loss) -> int | None:
    if not getattr(getattr(loss, "func", loss), "of_classes", False) or not isinstance(
        outputs, jax.Array
    ):
        return None
    labels = labels_of(batch)
    is_class = (
        jnp.issubdtype(jnp.result_type(labels), jnp.integer)
        and jnp.shape(labels) == outputs.shape[:-1]
    )
    return outputs.shape[-1] if is_class else None


def shapes_of(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """(structure, shapes of the leaves): a key of what is compiled or traced. Raises InputError for a leaf that is no array."""
    leaves, structure = jax.tree.flatten(tree)
    try:
        return structure, tuple(map(_shape_of, leaves))
    except TypeError as error:
        wrong = sorted({type(leaf).__name__ for leaf in leaves if not hasattr(leaf, "dtype")})
        raise InputError(
            f"variables or batch hold a {', '.join(wrong)}; allowed: arrays"
        ) from error


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(
        leaf, jax.Array
    ):  # the usual case, and the fast one: jnp.result_type takes microseconds a leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def reason(error: Exception) -> str:
    """What an error says in its first line, or what it is; of a traced boolean also what it may be."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return (
        f"{said.rstrip('.')}; {_STATIC}"
        if isinstance(error, jax.errors.TracerBoolConversionError)
        else said
    )


_STATIC = "if a training switch is traced, make it static (static_argnums of nn.remat, static_argnames of nn.jit)"


def has_batch_norm(variables: Any) -> bool:
    """Whether the network keeps running statistics."""
    return bool(jax.tree.leaves(dict(variables).get("batch_stats", {})))
