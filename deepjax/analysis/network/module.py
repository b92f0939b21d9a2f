"""Initialise, run and validate any linen module; what all instruments start from."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.losses import (
    Batch,
    Loss,
    cross_entropy,
    describe_outputs,
    labels_of,
    require_classes,
    takes_class_labels,
)
from deepjax.analysis.network.adapter import Adapter
from deepjax.analysis.network.batch import count_examples
from deepjax.analysis.network.function import (
    Function,
    collections_of,
    with_own_names,
    with_statistics,
)
from deepjax.analysis.network.image_scale import warn_of_images
from deepjax.analysis.network.inputs import inputs_of
from deepjax.analysis.network.network import (
    Model,
    Network,
    name_of,
    network_of,
    refusable_kwargs,
    required_mode_kwargs,
)
from deepjax.analysis.network.nn_jit import retraced
from deepjax.analysis.network.requirements import Requirements, bind_axes, find_requirements
from deepjax.analysis.network.run import (
    Rngs,
    apply_module,
    as_key,
    batch_key,
    call_module,
    memo_of,
    mode_text,
    refusable_mode_kwargs,
    shapes_of,
    stream_key,
    trace_call,
)
from deepjax.errors import InputError

__all__ = [
    "Batch",
    "Loss",
    "Model",
    "Network",
    "Rngs",
    "apply_module",
    "as_key",
    "batch_key",
    "cross_entropy",
    "describe_outputs",
    "entry",
    "has_batch_norm",
    "init_variables",
    "initialise",
    "inputs_of",
    "labels_of",
    "loss_of",
    "mode_text",
    "name_of",
    "network_of",
    "no_loss",
    "reason",
    "shapes_of",
    "stream_key",
    "takes_class_labels",
    "validate_inputs",
]


def entry(model: Model, variables: Any) -> tuple[Network, dict[str, Any]]:
    """(the network, which can be a static argument of jit; its variables without boxes).

    Boxes are those of `nn.with_partitioning` and the like. Of a function all collections but the
    parameters count as statistics that the examples of a batch may share in training.
    Raises InputError for a model of another kind, and for variables of a module without "params".
    """
    network = network_of(model)
    if isinstance(network.module, Function):
        return network, with_statistics(collections_of(variables))
    if not isinstance(variables, Mapping) or "params" not in variables:
        given = (
            f"have the collections {sorted(variables)}"
            if isinstance(variables, Mapping)
            else f"are a {type(variables).__name__}"
        )
        raise InputError(
            f"variables {given}; 'params' is missing; allowed: a dict as module.init returns it"
        )
    return network, dict(nn.meta.unbox(variables))


def initialise(model: Model, inputs: Any, key: Array | None = None) -> Any:
    """Initialise the variables, without boxes; also under `jax.eval_shape`.

    inputs: an array, or a tuple of arrays. Mode arguments have their defaults; those without a
    default are set to evaluation.
    """
    key = jax.random.key(0) if key is None else key
    network = network_of(model)
    given = inputs_of(network, (inputs, None))
    module = network.module
    if isinstance(module, Adapter):
        return module.variables_for(given)
    required: dict[str, Any] = required_mode_kwargs(network)

    def attempt(requirements: Requirements) -> Any:
        keys = {"params": key, "dropout": key} | {
            name: stream_key(key, name) for name in requirements.streams
        }
        kwargs = {
            name: value for name, value in required.items() if name not in requirements.refused
        }
        return bind_axes(
            lambda: nn.init(retraced, module)(keys, *given.args, **given.kwargs, **kwargs),
            requirements.axes,
        )

    return nn.meta.unbox(
        find_requirements(attempt, refusable=refusable_kwargs(network, required))[0]
    )


def init_variables(model: Model, key: Array, shape: Any) -> dict[str, Any]:
    """Initialise "params", and "batch_stats" where the network has them.

    shape: of one float32 array, batch included; or, for other dtypes and several inputs, a
    `jax.ShapeDtypeStruct` or array, or a tuple of them. Jitted, compiled once for each network and
    shape: un-jitted, initialising GoogLeNet dispatches 600 programs too small for the persistent
    cache (16 s in every process); jitted it takes 7 s once, and 1 s from the cache.
    Raises InputError where the network cannot take such inputs, and for an NNX module or a
    function, which is given with its variables.
    """
    network = network_of(model)
    if isinstance(network.module, Adapter):
        raise InputError(
            f"model is the network of {network.module.name}, which is no linen module; allowed "
            "here: a linen module; from_nnx(module) returns the variables of an NNX module"
        )
    is_shape = isinstance(shape, tuple | list) and all(
        isinstance(each, int | np.integer) for each in shape
    )
    structure, shapes = shapes_of(
        jax.ShapeDtypeStruct(tuple(shape), jnp.float32) if is_shape else shape
    )
    return _jitted_variables(network, key, structure, shapes)


def _variables(model: Model, key: Array, structure: Any, shapes: tuple[Any, ...]) -> dict[str, Any]:
    inputs = jax.tree.unflatten(structure, map(_placeholder, shapes))
    try:
        variables = initialise(model, inputs, key)
    except InputError:
        raise
    except Exception as error:  # anything that linen, JAX or the network raises about shapes
        given = ", ".join(f"{each.dtype}{list(each.shape)}" for each in shapes)
        why = reason(error).rstrip(".")
        hint = "; for other dtypes give a jax.ShapeDtypeStruct" if "integer" in why else ""
        raise InputError(f"{name_of(model)} cannot take inputs {given}: {why}{hint}") from error
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def _placeholder(shape: jax.ShapeDtypeStruct) -> Array:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape.shape)
    return jnp.zeros(shape.shape, shape.dtype)


_jitted_variables = jax.jit(_variables, static_argnums=(0, 2, 3))


def loss_of(
    model: Model, variables: Any, batch: Batch, loss: Loss, train: bool, rngs: Rngs = None
) -> Array:
    """The scalar loss; raises InputError where it is not a scalar, or the batch does not fit."""
    return _scalar(loss(apply_module(model, variables, batch, train, rngs)[0], batch), "loss")


def no_loss(outputs: Any, batch: Batch) -> Array:
    """0, to validate the inputs alone."""
    return jnp.zeros((), jnp.float32)


def _scalar(value: Any, what: str) -> Array:
    if jnp.shape(value) != ():
        raise InputError(
            f"{what} returned the shape {jnp.shape(value)}; allowed: a scalar, such as the mean "
            "over the examples"
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
    """Raise InputError where the network cannot take the batch, or the loss is not a scalar.

    Returns the `shapes_of` (variables without boxes, batch, rngs). By abstract evaluation, cached
    by shapes. For a loss marked by `takes_class_labels`, such as `cross_entropy`, labels outside
    the classes are refused too, except inside `jax.jit`. every: the stacked batches of which this
    is the first, whose labels are checked. what: the name of `loss` in messages.
    Warns of inputs that look like pixels without normalisation, or like (batch, channels, height,
    width).
    """
    network, variables = entry(model, variables)
    warn_of_images(inputs_of(network, batch))
    key = shapes_of((variables, batch, rngs))
    classes = _check(network, loss, train, what, *key)
    if classes is not None:
        require_classes(labels_of(batch if every is None else every), classes)
    return key


@functools.lru_cache(maxsize=64)
def _check(
    network: Network, loss: Loss, train: bool, what: str, structure: Any, shapes: tuple[Any, ...]
) -> int | None:
    """The number of classes of the labels; None where they are not classes."""
    variables, batch, rngs = jax.tree.unflatten(structure, shapes)
    inputs = inputs_of(network, batch)
    classes: list[int | None] = []

    def value(variables: Any, batch: Batch, rngs: Rngs, requirements: Requirements) -> Array:
        outputs, _ = call_module(
            network, variables, inputs_of(network, batch), train, rngs, (), False, requirements
        )
        classes.append(_classes(outputs, batch, loss))
        return _scalar(loss(outputs, batch), what)

    def attempt(requirements: Requirements) -> Any:
        return jax.eval_shape(
            functools.partial(value, requirements=requirements), variables, batch, rngs
        )

    try:
        memo = memo_of(network, train, *shapes_of((variables, inputs)))
        refusable = refusable_mode_kwargs(network, train)
        known = memo[0] or Requirements()
        if isinstance(rngs, Mapping):  # given keys would hide the streams that are needed
            trace = functools.partial(trace_call, network, variables, inputs, train)
            _, known = find_requirements(trace, known, refusable)
        _, memo[0] = find_requirements(attempt, known, refusable)
    except InputError as error:
        if str(error) == _fault_of_labels(batch):
            raise InputError(f"{error}{_pair_hint(batch)}") from error
        raise
    except Exception as error:  # anything that linen, JAX or the network raises about the inputs
        if classes:
            hint = _pair_hint(batch) if isinstance(error, IndexError) else ""
            raise InputError(
                f"{what} cannot take what {name_of(network)} returns: {reason(error)}{hint}"
            ) from error
        given = ", ".join(f"{jnp.shape(value)}" for value in jax.tree.leaves(inputs))
        why, hint = reason(error), _state_hint(variables, inputs)
        raise InputError(
            f"{name_of(network)} cannot take a batch with inputs of shape {given}: "
            f"{why.rstrip('.') if hint else why}{hint}"
        ) from error
    return classes[-1]


def _fault_of_labels(batch: Batch) -> str:
    try:
        labels_of(batch)
    except InputError as error:
        return str(error)
    return ""


def _pair_hint(batch: Batch) -> str:
    """Where it may be one of a list [inputs, labels] that was read as a list of inputs."""
    if not isinstance(batch, tuple) or len(batch) != 1:
        return ""
    return (
        "; a list of arrays of floats of one shape is read as batches of inputs, [(x1,), (x2,)]: "
        "give inputs and labels as a tuple, and several batches as a list of tuples"
    )


def _state_hint(variables: Any, inputs: Any) -> str:
    """Where a collection, such as a cache, is of another number of examples than the inputs."""
    examples = count_examples(inputs)
    for name, tree in with_own_names(variables).items():
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree) if leaf.ndim}
        if (
            name in ("params", "batch_stats", "constants")
            or examples is None
            or sizes <= {examples}
        ):
            continue
        return (
            f"; its collection {name!r} is of {', '.join(map(str, sorted(sizes)))} examples: for "
            "other batches, and for single examples, use the network without it"
        )
    return ""


def _classes(outputs: Any, batch: Batch, loss: Loss) -> int | None:
    if not getattr(getattr(loss, "func", loss), "takes_class_labels", False) or not isinstance(
        outputs, jax.Array
    ):
        return None
    labels = labels_of(batch)
    is_class = (
        jnp.issubdtype(jnp.result_type(labels), jnp.integer)
        and jnp.shape(labels) == outputs.shape[:-1]
    )
    return outputs.shape[-1] if is_class else None


def reason(error: Exception) -> str:
    """The first line of an error's message, or its type; with a hint for a traced boolean."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, jax.errors.TracerBoolConversionError):
        return f"{text.rstrip('.')}; {_STATIC}"
    return text


_STATIC = (
    "if a training switch is traced, make it static (static_argnums of nn.remat, "
    "static_argnames of nn.jit)"
)


def has_batch_norm(variables: Any) -> bool:
    """Whether the network keeps running statistics; a function: any state, see `entry`."""
    return bool(jax.tree.leaves(dict(variables).get("batch_stats", {})))
