"""Warnings about legal settings that are almost certainly mistakes, before the first step.

They are found from the configuration and one trace of the network, which computes nothing.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from deepjax.backend.jax_internals import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from deepjax.backend.lowering import reference_lowering
from deepjax.errors import InputError, require
from deepjax.models import model_info
from deepjax.models.layers.norms import BatchNorm
from deepjax.training.config import TrainConfig, is_custom
from deepjax.training.step.step import mutable_aux_collection

MAX_SHOWN_NAMES = 4
# An average that keeps more of the initial weights at the end is no average of the training.
MAX_INITIAL_FRACTION = 0.05
# Fraction of the convolutions that may see a single pixel; GoogLeNet at 32x32 has 0.2.
MAX_SINGLE_PIXEL_FRACTION = 0.25


@dataclasses.dataclass(frozen=True)
class Forward:
    """The traced forward pass of one part of a training batch; nothing is computed."""

    jaxpr: Jaxpr
    """Its first inputs are the leaves of the parameters."""
    output: Any
    """The shape of the network's output."""
    params: tuple[str, ...]
    """Paths of the parameters."""
    values_per_channel: Mapping[str, int]
    """Number of values in the statistics of each batch normalisation, by path."""
    not_asked: frozenset[str]
    """Parameters of modules that did not run because auxiliary heads have no weight."""
    not_frozen: tuple[str, ...] = ()
    """Paths of batch statistics that change although batch norms are frozen."""


def trace_forward(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    images: Any,
    devices: int,
    auxiliary_weight: float,
    frozen: bool = False,
) -> Forward:
    """Trace a network in training mode.

    Arguments are arrays or their shapes. images: (batch, height, width, channels); devices: number
    of devices that share the batch; auxiliary_weight: 0 for auxiliary heads that do not run;
    frozen: whether its batch norms are frozen (`freeze_batch_norms`).
    """
    values: dict[str, int] = {}
    called: set[str] = set()
    frozen_norms: set[str] = set()
    changed: list[str] = []

    def note(
        function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        called.add("/".join(module.path))
        if frozen:
            if isinstance(module, BatchNorm | nn.BatchNorm):
                frozen_norms.add("/".join(module.path))
        elif isinstance(module, BatchNorm) and module.train and context.method_name == "__call__":
            count = _images_together(module.bn_scope, arguments[0].shape[0], devices) * math.prod(
                arguments[0].shape[1:-1]
            )
            values["/".join(module.path)] = count
            if count == 1:  # refused by `check_batch_norm`, which names all of them
                return arguments[0]
        return function(*arguments, **keywords)

    def forward(params: Any, batch_stats: Any, images: Any, key: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        output, sown = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats", *mutable_aux_collection(auxiliary_weight)],
            rngs={"dropout": key},
        )
        if frozen:
            changed.extend(_changed(batch_stats, sown.get("batch_stats", {})))
        return output, sown.get("auxiliary", {})

    with nn.intercept_methods(note), reference_lowering():
        key = jax.eval_shape(lambda: jax.random.key(0))
        jaxpr, (output, _) = jax.make_jaxpr(forward, return_shape=True)(
            params, batch_stats, images, key
        )
    paths = [
        "/".join(str(part.key) for part in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    idle = {path for path in paths if path.rpartition("/")[0] not in called}
    not_asked = frozenset(idle if auxiliary_weight == 0 else ())
    not_frozen = tuple(path for path in changed if path.rpartition("/")[0] not in frozen_norms)
    return Forward(jaxpr.jaxpr, output, tuple(paths), values, not_asked, not_frozen)


def _changed(before: Any, after: Any) -> list[str]:
    """Paths of the leaves that are not the same objects; those of a scan never are."""
    others: dict[tuple[Any, ...], Any] = flatten_dict(dict(after))
    leaves: dict[tuple[Any, ...], Any] = flatten_dict(dict(before))
    return ["/".join(map(str, path)) for path in leaves if others.get(path) is not leaves[path]]


def check_frozen(forward: Forward, batch_stats: Any, config: TrainConfig) -> None:
    """Raise InputError where freeze_batch_norm leaves batch statistics that change, or has none."""
    if not config.transfer.freeze_batch_norm:
        return
    has_some = bool(jax.tree.leaves(batch_stats))
    allowed = f"False for {config.model}, which has no batch norm"
    require(has_some, "freeze_batch_norm", True, allowed)
    if forward.not_frozen:
        raise InputError(
            f"freeze_batch_norm is True, and training {config.model} changes "
            f"{_listed(forward.not_frozen)}; allowed: batch norms of deepjax, of flax.linen in "
            "linen networks, and of flax.nnx in networks of NNX"
        )


def check_batch_norm(forward: Forward, config: TrainConfig) -> None:
    """Raise InputError for batch-norm statistics over a single value per channel.

    The normalised value is then 0, and so is every gradient.
    """
    single = [path for path, count in forward.values_per_channel.items() if count == 1]
    if single:
        raise InputError(
            f"batch normalisation has one value a channel in {_listed(single)}, "
            "whose output is 0 whatever the image; allowed: two values or more "
            f"(batch_size is {config.batch_size}, grad_accum_steps {config.grad_accum_steps}, "
            f"bn_scope {config.bn_scope!r}, "
            f"images {_smallest(config)}x{_smallest(config)}): "
            "give a larger part of the batch or larger images"
        )


def warnings_of(
    config: TrainConfig, forward: Forward, labels: np.ndarray | None, classes: int
) -> list[str]:
    """One line for each setting that is almost certainly a mistake.

    labels: of the training split, (images,); None: not in memory.
    """
    return [
        *_small_images(config, forward),
        *_cold_averages(config),
        *_unused(forward),
        *_missing_classes(labels, classes),
    ]


def _small_images(config: TrainConfig, forward: Forward) -> Iterator[str]:
    """Too many convolutions see a single pixel; the rest of their kernels sees only padding."""
    extents = [
        _extents(each)
        for each in _equations(forward.jaxpr)
        if each.primitive.name == "conv_general_dilated"
    ]
    spatial = [pixels for pixels, kernel in extents if kernel > 1]
    single = spatial.count(1)
    if single > MAX_SINGLE_PIXEL_FRACTION * len(spatial):
        size = _smallest(config)
        row = None if is_custom(config.model) else model_info(config.model)
        made_for = f", which was made for {row.input_shape[0]}x{row.input_shape[1]}" if row else ""
        yield (
            f"images of {size}x{size} are too small for {config.model}{made_for}: "
            f"{single} of its {len(spatial)} convolutions with "
            "kernels larger than 1x1 see a single pixel; give a larger image_size"
        )


def _cold_averages(config: TrainConfig) -> Iterator[str]:
    kept = config.ema_decay**config.total_steps
    if config.ema_decay and kept > MAX_INITIAL_FRACTION:
        steps = math.ceil(math.log(MAX_INITIAL_FRACTION) / math.log(config.ema_decay))
        fitting = MAX_INITIAL_FRACTION ** (1 / config.total_steps)
        yield (
            f"ema_decay is {config.ema_decay:g} and there are {config.total_steps} steps: "
            "the averages that are evaluated still contain "
            f"{100 * kept:.0f} % of the initial weights; "
            f"train {steps} steps or more, or give ema_decay {fitting:.3g} or less"
        )


def _unused(forward: Forward) -> Iterator[str]:
    used = _used_inputs(forward.jaxpr, [True] * len(forward.jaxpr.outvars))
    unused = [
        path
        for path, is_used in zip(forward.params, used, strict=False)
        if not is_used and path not in forward.not_asked
    ]
    if unused:
        yield (
            f"{len(unused)} of {len(forward.params)} parameters do not influence the loss "
            f"and stay as they are: {_listed(unused)}"
        )


def _missing_classes(labels: np.ndarray | None, classes: int) -> Iterator[str]:
    missing = (
        []
        if labels is None
        else np.flatnonzero(np.bincount(labels, minlength=classes) == 0).tolist()
    )
    if missing:
        names = _listed([str(label) for label in missing])
        yield f"{len(missing)} of {classes} classes have no training images: {names}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_SHOWN_NAMES]) + (
        f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else ""
    )


def _smallest(config: TrainConfig) -> int:
    return min(config.data.progressive_sizes or config.input_shape[:2])


def _images_together(bn_scope: Any, batch: int, devices: int) -> int:
    return (
        bn_scope
        if isinstance(bn_scope, int)
        else batch // (devices if bn_scope == "replica" else 1)
    )


def _inner(equation: JaxprEqn) -> list[Jaxpr]:
    """The computations inside of an equation."""
    values = [
        each
        for value in equation.params.values()
        for each in (value if isinstance(value, tuple) else (value,))
    ]
    return [
        each.jaxpr if isinstance(each, ClosedJaxpr) else each
        for each in values
        if isinstance(each, Jaxpr | ClosedJaxpr)
    ]


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(equation):
            yield from _equations(inner)


def _extents(convolution: JaxprEqn) -> tuple[int, int]:
    """Pixels of a convolution's input, and of its kernel."""
    layout = convolution.params["dimension_numbers"]
    shapes: list[Any] = [variable.aval for variable in convolution.invars]
    maps, kernel = (each.shape for each in shapes)
    return math.prod(maps[axis] for axis in layout.lhs_spec[2:]), math.prod(
        kernel[axis] for axis in layout.rhs_spec[2:]
    )


def _used_inputs(jaxpr: Jaxpr, used_outputs: Sequence[bool]) -> list[bool]:
    """Which inputs a used output depends on; outputs of loops and branches depend on all inputs."""
    used = {
        id(v)
        for v, is_used in zip(jaxpr.outvars, used_outputs, strict=True)
        if is_used and not isinstance(v, Literal)
    }
    for equation in reversed(jaxpr.eqns):
        outputs = [id(variable) in used for variable in equation.outvars]
        if not any(outputs):
            continue
        inner = _inner(equation)
        inputs = [True] * len(equation.invars)
        if len(inner) == 1 and equation.primitive.name not in ("scan", "while"):
            same = (len(inner[0].invars), len(inner[0].outvars)) == (
                len(equation.invars),
                len(equation.outvars),
            )
            inputs = _used_inputs(inner[0], outputs) if same else inputs
        used |= {
            id(v)
            for v, is_used in zip(equation.invars, inputs, strict=True)
            if is_used and not isinstance(v, Literal)
        }
    return [id(variable) in used for variable in jaxpr.invars]


def shape_of_part(config: TrainConfig) -> jax.ShapeDtypeStruct:
    """The smallest images that a step computes at once: one part of a batch."""
    size = _smallest(config)
    height, width, channels = config.input_shape
    shape = (size, size) if config.data.progressive_sizes else (height, width)
    return jax.ShapeDtypeStruct(
        (config.batch_size // config.grad_accum_steps, *shape, channels), jnp.float32
    )
