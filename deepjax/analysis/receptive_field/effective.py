"""Effective receptive fields: how much each pixel influences the centre unit of a map.

Luo, Li, Urtasun and Zemel, "Understanding the Effective Receptive Field in Deep Convolutional
Neural Networks", 2016 (arXiv:1701.04128): a gradient of 1 at the centre unit of an output plane,
back-propagated to the input (section 3.1).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.calls import all_calls, is_float, path_of, visit_calls
from deepjax.analysis.core.module import (
    Network,
    apply_module,
    as_static,
    describe_outputs,
    name_of,
    shapes_of,
)
from deepjax.analysis.receptive_field.theoretical import ReceptiveField, receptive_fields
from deepjax.errors import InputError, require, unknown_name_error

THRESHOLD = 1 - 0.9545  # relative to the peak (Luo et al. 2016, section 3)
Power = Literal["absolute", "square"]


@dataclasses.dataclass(frozen=True, eq=False)
class EffectiveField:
    """The influence of each pixel on the centre unit of a layer. Lengths in pixels of the input."""

    layer: str
    """Path of the module; "" is the network."""
    unit: tuple[int, int]
    """Row and column of the centre unit in the output."""
    power: Power
    map: np.ndarray
    """(height, width): |gradient| or its square, averaged over channels and inputs."""
    size: float
    """Square root of the number of pixels above 4.55 % of the peak of the map."""
    sigma: tuple[float, float]
    """Standard deviations of the map as a distribution over rows and over columns."""
    r2: float
    """R^2 of the Gaussian with those moments, its height by least squares."""
    theoretical: tuple[int, int] | None
    """Rows and columns of the theoretical field in evaluation; None: the full image, or unknown."""

    @property
    def ratio(self) -> float | None:
        """Effective over theoretical size: about 1 / sqrt(layers) in a plain stack."""
        return self.theoretical and self.size / math.sqrt(math.prod(self.theoretical))

    def rows(self) -> list[dict[str, Any]]:
        """One dict of all values except the map."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "map"
        }
        return [fields | {"ratio": self.ratio}]

    def plot(self, ax: Any = None) -> Any:
        """The map with a scale bar, and the theoretical field as a square; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        with canvas(ax, 4.8, 4.4) as axes:
            rows, columns = self.map.shape
            image = axes.imshow(
                self.map / self.map.max(), cmap="magma", vmin=0, vmax=1, interpolation="nearest"
            )
            kind = "|gradient|" if self.power == "absolute" else "gradient²"
            axes.figure.colorbar(image, ax=axes, shrink=0.85, label=f"mean {kind} / its peak")
            _outline(axes, self, COLORS[5])
            left, bottom = 0.04 * columns, 0.95 * rows
            axes.plot(
                [left, left + self.size],
                [bottom, bottom],
                color="white",
                linewidth=3,
                solid_capstyle="butt",
            )
            axes.text(
                left,
                bottom - 0.02 * rows,
                f"{self.size:.1f} pixels",
                color="white",
                va="bottom",
                fontsize=9,
            )
            axes.set(title=_field_title(self), xlabel="column (pixels)", ylabel="row (pixels)")
            axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
            axes.grid(False)
        return axes


def effective_field(
    model: nn.Module | Network,
    variables: Any,
    inputs: Array,
    *,
    layer: str | None = None,
    channel: int | None = None,
    power: Power = "absolute",
    train: bool = False,
) -> EffectiveField:
    """The influence of each pixel on the centre unit of a map, and the size of this field.

    inputs: (batch, height, width, channels) floats; about 100 images for a nonlinear network.
    layer: path of a module that returns (batch, height, width, channels), default the network; of a
    shared module the last call. channel: of the output, default their sum. power: in a random
    network theory gives the width of the mean of "square", sqrt(n (k^2 - 1) / 12) for n k x k
    convolutions; that of "absolute" is up to sqrt(2) times as large.
    train: batch norm uses the statistics of the batch, which couples the inputs.
    Raises InputError for an unknown layer (with the nearest name), one inside nn.scan or nn.remat,
    one that does not return a map, inputs that do not fit, and a unit without influence.
    Cost: one forward and one backward pass over the inputs, with all activations in memory;
    compiled once for each network and shape. Source: Luo et al. 2016, sections 2 and 3.1.
    """
    model = as_static(model)
    require(
        jnp.ndim(inputs) == 4 and is_float(jnp.asarray(inputs)),
        "inputs",
        _described(inputs),
        "floats (batch, height, width, channels)",
    )
    require(power in ("absolute", "square"), "power", power, "'absolute' or 'square'")
    path = layer or ""
    shape = _shape_of(model, variables, inputs, path, train)
    require(
        channel is None or 0 <= channel < shape[3],
        "channel",
        channel,
        f"None, or 0 to {shape[3] - 1}",
    )
    found = _field_map(
        model, variables, inputs, layer=path, channel=channel, square=power == "square", train=train
    )
    field = _theory(model, variables, inputs, path)
    return _measured(
        np.asarray(found, np.float64),
        path,
        (shape[1] // 2, shape[2] // 2),
        power,
        field and field.size,
    )


def average_fields(fields: Sequence[EffectiveField]) -> EffectiveField:
    """The field of the mean of several maps of one layer, such as over random initialisations.

    Raises InputError for none, or for fields of different layers, shapes or powers.
    Source: Luo et al. 2016, section 3.1, whose figures are averages over 20 initialisations.
    """
    kinds = {(field.layer, field.unit, field.power, field.map.shape) for field in fields}
    require(
        len(kinds) == 1,
        "fields",
        f"{len(kinds)} kinds of fields",
        "fields of one layer, unit, power and image shape",
    )
    first = fields[0]
    mean = np.mean([field.map for field in fields], axis=0)
    return _measured(mean, first.layer, first.unit, first.power, first.theoretical)


@functools.partial(jax.jit, static_argnames=("model", "layer", "channel", "square", "train"))
def _field_map(
    model: nn.Module | Network,
    variables: Any,
    inputs: Array,
    *,
    layer: str,
    channel: int | None,
    square: bool,
    train: bool,
) -> Array:
    def centre(inputs: Array) -> Array:
        plane = _output_of(model, variables, inputs, layer, train)
        units = plane[:, plane.shape[1] // 2, plane.shape[2] // 2].astype(jnp.float32)
        # A sum over the inputs has the gradient of each with respect to itself.
        return jnp.sum(units if channel is None else units[:, channel])

    gradient = jax.grad(centre)(inputs).astype(jnp.float32)
    return jnp.mean(jnp.square(gradient) if square else jnp.abs(gradient), axis=(0, 3))


def _output_of(
    model: nn.Module | Network, variables: Any, inputs: Array, layer: str, train: bool
) -> Array:
    """The output of the last call of the layer."""
    found: dict[str, Array] = {}

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: Array, inside: bool) -> None:
        if path_of(module) == layer:
            found[layer] = output

    outputs = visit_calls(model, variables, inputs, train, keep)
    return found[layer] if layer else outputs


def _shape_of(
    model: nn.Module | Network, variables: Any, inputs: Array, layer: str, train: bool
) -> tuple[int, ...]:
    calls = {call.path: call for call in all_calls(model, variables, inputs, train)}
    if layer and layer not in calls:
        raise unknown_name_error("layer", layer, filter(None, calls))
    if layer and calls[layer].in_transform:
        raise InputError(
            f"layer {layer!r} runs inside nn.scan or nn.remat, or nn.jit or the like, where its "
            "output cannot be read; allowed: layers outside"
        )
    shape = (
        calls[layer].shape if layer else _own_shape(model, train, *shapes_of((variables, inputs)))
    )
    if len(shape) != 4:
        name = repr(layer) if layer else "the network's own output"
        maps = [
            path for path, call in calls.items() if len(call.shape) == 4 and not call.in_transform
        ]
        raise InputError(
            f"layer is {name}, of shape {shape}; allowed: one that returns a map, such as "
            f"{maps[-1:] or 'none here'}"
        )
    return shape


@functools.lru_cache(maxsize=256)
def _own_shape(
    model: nn.Module | Network, train: bool, structure: Any, shapes: tuple[Any, ...]
) -> tuple[int, ...]:
    variables, inputs = jax.tree.unflatten(structure, shapes)
    outputs, _ = jax.eval_shape(
        lambda *given: apply_module(model, given[0], (given[1], None), train), variables, inputs
    )
    if not (
        isinstance(outputs, jax.ShapeDtypeStruct) and jnp.issubdtype(outputs.dtype, jnp.floating)
    ):
        raise InputError(
            f"{name_of(model)} returns {describe_outputs(outputs)}; allowed: one array of floats, "
            "which Network(module, output=...) selects, or layer="
        )
    return outputs.shape


def _theory(
    model: nn.Module | Network, variables: Any, inputs: Array, layer: str
) -> ReceptiveField | None:
    leaves, structure = jax.tree.flatten(variables)
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return _kept_theory(model, structure, shapes, jnp.shape(inputs)[1:], layer)


@functools.lru_cache(maxsize=256)
def _kept_theory(
    model: nn.Module | Network,
    structure: Any,
    shapes: tuple[Any, ...],
    input_shape: tuple[int, ...],
    layer: str,
) -> ReceptiveField | None:
    variables = jax.tree.unflatten(structure, shapes)
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    if layer and layer not in {call.path for call in all_calls(model, variables, images, False)}:
        return None  # an auxiliary head, which runs in training only
    return receptive_fields(
        lambda images, variables: _output_of(model, variables, images, layer, False),
        input_shape,
        variables,
    )


def _measured(
    found: np.ndarray,
    layer: str,
    unit: tuple[int, int],
    power: Power,
    theoretical: tuple[int, int] | None,
) -> EffectiveField:
    if not (np.isfinite(found).all() and found.max() > 0):
        what = "no pixel influences"
        if not np.isfinite(found).all():
            what = "the gradient is not finite for"
        raise InputError(
            f"layer {layer!r}: {what} its centre unit {unit} in these inputs; use other variables, "
            "inputs or layer"
        )
    size = math.sqrt(np.count_nonzero(found > THRESHOLD * found.max()))
    sigma, r2 = _gaussian(found)
    return EffectiveField(layer, unit, power, found, size, sigma, r2, theoretical)


def _gaussian(found: np.ndarray) -> tuple[tuple[float, float], float]:
    """(standard deviations over rows and columns, R^2 of the Gaussian that has them)."""
    bells, sigma = [], []
    for axis in (0, 1):
        profile = found.sum(axis=1 - axis) / found.sum()
        places = np.arange(len(profile))
        mean = profile @ places
        sigma.append(math.sqrt(profile @ (places - mean) ** 2))
        bells.append(np.exp(-0.5 * ((places - mean) / max(sigma[-1], 1e-6)) ** 2))
    bell = np.outer(*bells)
    height = (found * bell).sum() / (bell**2).sum() if bell.any() else 0.0
    spread = ((found - found.mean()) ** 2).sum()
    r2 = 1 - ((found - height * bell) ** 2).sum() / spread if spread else math.nan
    return (sigma[0], sigma[1]), float(r2)


def _described(inputs: Any) -> str:
    return f"{jnp.result_type(inputs)} {jnp.shape(inputs)}"


def _outline(ax: Any, field: EffectiveField, color: str) -> None:
    """The theoretical field, as a square around the map's centre of mass.

    The position of a unit's field depends on strides and padding, its size does not.
    """
    from matplotlib.patches import Rectangle

    if field.theoretical is None:
        return
    weights = field.map / field.map.sum()
    row, column = (weights.sum(axis=1 - axis) @ np.arange(weights.shape[axis]) for axis in (0, 1))
    height, width = field.theoretical
    corner = (round(2 * (column - width / 2)) / 2, round(2 * (row - height / 2)) / 2)
    ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.4))
    text = f"theoretical {height} x {width}"
    ax.text(
        max(corner[0], 0) + 0.5, max(corner[1], 0) + 0.5, text, color=color, fontsize=9, va="top"
    )


def _field_title(field: EffectiveField) -> str:
    of = "" if field.ratio is None else f", {100 * field.ratio:.0f} % of the theoretical"
    spread = f"$\\sigma$ = {np.mean(field.sigma):.2f} pixels, $R^2$ of a Gaussian {field.r2:.3f}"
    return f"Effective field: {field.size:.1f} pixels wide{of}\n{spread}"
