"""Effective receptive fields: how much each pixel influences the centre unit of a map.

Luo, Li, Urtasun and Zemel, "Understanding the Effective Receptive Field in Deep Convolutional
Neural Networks", 2016 (arXiv:1701.04128): a gradient of 1 at the centre unit of an output plane,
back-propagated to the input (section 3.1).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers, matching_layers
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.batch import Batches, count_examples, mean_over_batches
from deepjax.analysis.network.calls import all_calls, visit_calls
from deepjax.analysis.network.inputs import floats_of, inputs_of, is_floating, with_floats
from deepjax.analysis.network.layer import Layer
from deepjax.analysis.network.module import (
    Batch,
    Model,
    Network,
    apply_module,
    describe_outputs,
    name_of,
    no_loss,
    shapes_of,
)
from deepjax.analysis.network.taps import require_layers
from deepjax.analysis.network.task import Task, make_task
from deepjax.analysis.receptive_field.field_map import EffectiveField, Power, measure_field
from deepjax.analysis.receptive_field.theoretical import ReceptiveField, fields_of
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.backend.lowering import reference_lowering
from deepjax.errors import InputError, require


@instrument
def effective_field(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    channel: int | None = None,
    power: Power = "absolute",
) -> EffectiveField:
    """The influence of each pixel on the centre unit of a map, and the size of this field.

    batch: also the inputs alone, among which one is an image (batch, height, width, channels) of
    floats; about 100 images for a nonlinear network; of several batches the maps are averaged.
    mode: in training the statistics of a batch couple its images. layers: the path of one layer
    that returns (batch, height, width, channels), or a pattern that selects only one, default the
    network; of a shared module the last call. channel: of the output, default their sum. power: in
    a random network theory gives the width of the mean of "square", sqrt(n (k^2 - 1) / 12) for n
    k x k convolutions; that of "absolute" is up to sqrt(2) times as large.
    Raises InputError for an unknown layer (with the nearest name), a pattern that selects several,
    a layer inside nn.scan or nn.remat, one that does not return a map, any layer of a function,
    inputs that do not fit, and a unit without influence.
    Cost: one forward and one backward pass over the inputs, with all activations of a batch in
    memory; compiled once for each network and shape. Source: Luo et al. 2016, sections 2 and 3.1.
    """
    task = make_task(model, variables, batch, loss=no_loss, mode=mode, key=key)
    if layers is not None:
        require_layers(task.network, "effective_field with layers=")
    require(power in ("absolute", "square"), "power", power, "'absolute' or 'square'")
    inputs = inputs_of(task.network, task.data.first)
    image = _image_of(inputs)
    path, shape = _layer_and_shape(task, layers)
    require(
        channel is None or 0 <= channel < shape[3],
        "channel",
        channel,
        f"None, or 0 to {shape[3] - 1}",
    )
    found = _field_map(
        task.variables,
        task.data.stacked,
        task.key,
        model=task.network,
        image=image,
        layer=path,
        channel=channel,
        square=power == "square",
        train=mode.train,
    )
    field = _theory(task.network, task.variables, inputs, image, path)
    return measure_field(
        np.asarray(found, np.float64),
        path,
        (shape[1] // 2, shape[2] // 2),
        power,
        field and field.size,
        mode,
        task.mode_text,
    )


def average_fields(fields: Sequence[EffectiveField]) -> EffectiveField:
    """The field of the mean of several maps of one layer, such as over random initialisations.

    Raises InputError for none, or for fields of different layers, shapes, powers or modes.
    Source: Luo et al. 2016, section 3.1, whose figures are averages over 20 initialisations.
    """
    kinds = {
        (field.layer, field.unit, field.power, field.mode, field.map.shape) for field in fields
    }
    require(
        len(kinds) == 1,
        "fields",
        f"{len(kinds)} kinds of fields",
        "fields of one layer, unit, power, mode and image shape",
    )
    first = fields[0]
    mean = np.mean([field.map for field in fields], axis=0)
    return measure_field(
        mean,
        first.layer,
        first.unit,
        first.power,
        first.theoretical,
        first.mode,
        first.mode_text,
    )


@functools.partial(
    jax.jit, static_argnames=("model", "image", "layer", "channel", "square", "train")
)
@canonicalize_conv_layouts
def _field_map(
    variables: Any,
    stacked: Any,
    key: Array,
    *,
    model: Network,
    image: int,
    layer: str,
    channel: int | None,
    square: bool,
    train: bool,
) -> Array:
    """(height, width). image: index of the image among the floats of the inputs."""

    def of_batch(key: Array, batch: Batch) -> Array:
        inputs = inputs_of(model, batch)
        floats = floats_of(inputs)

        def centre(value: Array) -> Array:
            given = with_floats(inputs, [*floats[:image], value, *floats[image + 1 :]])
            plane = _output_of(model, variables, given, layer, train, key)
            units = plane[:, plane.shape[1] // 2, plane.shape[2] // 2].astype(jnp.float32)
            # A sum over the images has the gradient of each with respect to itself.
            return jnp.sum(units if channel is None else units[:, channel])

        gradient = jax.grad(centre)(floats[image]).astype(jnp.float32)
        return jnp.mean(jnp.square(gradient) if square else jnp.abs(gradient), axis=(0, 3))

    return mean_over_batches(of_batch, stacked, key)


def _output_of(
    model: Network,
    variables: Any,
    inputs: Inputs,
    layer: str,
    train: bool,
    key: Array | None = None,
) -> Array:
    """The output of the last call of the layer."""
    found: dict[str, Array] = {}

    def keep(at: Layer, arguments: tuple[Any, ...], output: Array) -> None:
        if at.label == layer:
            found[layer] = output

    outputs = visit_calls(model, variables, (inputs, None), train, keep, key)
    return found[layer] if layer else outputs


def _image_of(inputs: Inputs) -> int:
    """Index of the image among the floats; raises InputError unless there is one."""
    images = [index for index, each in enumerate(floats_of(inputs)) if jnp.ndim(each) == 4]
    if len(images) == 1:
        return images[0]
    given = [f"{jnp.result_type(each)} {jnp.shape(each)}" for each in jax.tree.leaves(inputs)]
    raise InputError(
        f"batch has the inputs {', '.join(given)}; allowed: inputs of which one is an image of "
        "floats (batch, height, width, channels)"
    )


def _layer_and_shape(task: Task, layers: Layers) -> tuple[str, tuple[int, ...]]:
    """(the path of the layer, the shape of its output)."""
    first, train = task.data.first, task.mode.train
    calls = {call.path: call for call in all_calls(task.network, task.variables, first, train)}
    layer = "" if layers is None else _one_layer(layers, [path for path in calls if path])
    if layer and calls[layer].in_transform:
        raise InputError(
            f"layer {layer!r} runs inside nn.scan or nn.remat, or nn.jit or the like, where its "
            "output cannot be read; allowed: layers outside"
        )
    shape = (
        calls[layer].shape
        if layer
        else _own_shape(task.network, train, *shapes_of((task.variables, first)))
    )
    if len(shape) != 4:
        name = repr(layer) if layer else "the network's own output"
        maps = [
            path
            for path, call in calls.items()
            if path and len(call.shape) == 4 and not call.in_transform
        ]
        raise InputError(
            f"layer is {name}, of shape {shape}; allowed: one that returns a map, such as "
            f"{maps[-1:] or 'none here'}"
        )
    return layer, shape


def _one_layer(layers: Layers, known: Sequence[str]) -> str:
    selected = matching_layers(layers, known)
    found = [path for path in known if path in selected]
    if len(found) > 1:
        raise InputError(
            f"layers is {layers!r}, which selects {len(found)} layers: {', '.join(found[:8])}"
            f"{', ...' if len(found) > 8 else ''}; allowed: one layer"
        )
    return found[0]


@functools.lru_cache(maxsize=256)
def _own_shape(
    model: Network, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[int, ...]:
    variables, batch = jax.tree.unflatten(structure, shapes)
    outputs, _ = jax.eval_shape(
        lambda variables, batch: apply_module(model, variables, batch, train), variables, batch
    )
    if not (
        isinstance(outputs, jax.ShapeDtypeStruct) and jnp.issubdtype(outputs.dtype, jnp.floating)
    ):
        raise InputError(
            f"{name_of(model)} returns {describe_outputs(outputs)}; allowed: one array of floats, "
            "which Network(module, output=...) selects, or layers="
        )
    return outputs.shape


def _theory(
    model: Network, variables: Any, inputs: Inputs, image: int, layer: str
) -> ReceptiveField | None:
    """The theoretical field in evaluation, for one example where inputs have examples."""
    one = inputs
    if count_examples(inputs) is not None:
        one = jax.tree.map(lambda leaf: leaf[:1] if jnp.ndim(leaf) else leaf, inputs)
    return _kept_theory(model, *shapes_of((variables, one)), image, layer)


@functools.lru_cache(maxsize=256)
def _kept_theory(
    model: Network, structure: Any, shapes: tuple[Any, ...], image: int, layer: str
) -> ReceptiveField | None:
    variables, inputs = jax.tree.unflatten(structure, shapes)
    calls = all_calls(model, variables, (inputs, None), False)
    if layer and layer not in {call.path for call in calls}:
        return None  # an auxiliary head, which runs in training only
    with reference_lowering():
        jaxpr = jax.make_jaxpr(
            lambda inputs, variables: _output_of(model, variables, inputs, layer, False)
        )(inputs, variables)
    leaves = jax.tree.leaves(inputs)
    place = [index for index, leaf in enumerate(leaves) if is_floating(leaf)][image]
    return fields_of(jaxpr, place)[0]
