"""Theoretical receptive fields of every layer of a network, with branches."""

import dataclasses
import functools
from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode, require_mode
from deepjax.analysis.core.result import Result
from deepjax.analysis.jaxpr.module_paths import shapes_of_variables
from deepjax.analysis.network.adapter import Inputs
from deepjax.analysis.network.calls import all_calls, visit_calls
from deepjax.analysis.network.input_shapes import InputShape, input_shapes, typed_shapes
from deepjax.analysis.network.layer import Layer
from deepjax.analysis.network.module import Model, Network, mode_text, network_of, shapes_of
from deepjax.analysis.network.taps import require_layers
from deepjax.analysis.receptive_field.theoretical import fields_of
from deepjax.backend.lowering import reference_lowering
from deepjax.errors import InputError

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class LayerField:
    """The field of a layer's units, in pixels as (rows, columns). None as in `ReceptiveField`."""

    layer: str
    """Path of the module; "" is the network."""
    shape: tuple[int, int, int]
    """Of its output for one image: height, width, channels."""
    size: Pair | None
    stride: Pair | None
    """Pixels between neighbouring units' fields."""
    padding: Pair | None
    """Pixels by which the first unit's field extends beyond the edge of the image."""

    @property
    def centre(self) -> tuple[float, float] | None:
        """Centre of the first unit's field; 0 is the centre of the first pixel.

        Unit i has the centre `centre + i * stride`.
        """
        if self.size is None or self.padding is None:
            return None
        rows, columns = (
            (size - 1) / 2 - padding for size, padding in zip(self.size, self.padding, strict=True)
        )
        return rows, columns


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerFields(Result):
    """Every layer that returns a map, in the order in which their calls end.

    A map is an array (batch, height, width, channels). Other arrays of four axes, such as the
    queries of attention (1, tokens, heads, features), and arrays of their shape, are not maps.
    """

    image_shape: tuple[int, int, int]
    """Height, width and channels of the image among the inputs."""
    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    layers: tuple[LayerField, ...]
    skipped_layers: tuple[str, ...]
    """Layers inside nn.scan, nn.remat or the like, which their outputs cannot leave."""

    def summary(self) -> dict[str, Any]:
        """Number of layers, the largest field, and the number of layers that see the full image."""
        sizes = [max(layer.size) for layer in self.layers if layer.size is not None]
        return {
            "layers": len(self.layers),
            "largest field": max(sizes, default=0),
            "see the full image": len(self.layers) - len(sizes),
            "skipped": len(self.skipped_layers),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per layer."""
        return [dataclasses.asdict(layer) | {"centre": layer.centre} for layer in self.layers]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Field size against depth, with the image size and the strides; returns the Axes."""
        from matplotlib.ticker import FuncFormatter

        from deepjax.analysis.plots import COLORS, canvas

        rows = [row for row in self.layers if row.size is not None and max(row.size) > 0]
        sizes = [max(row.size or (0,)) for row in rows]
        side = max(self.image_shape[:2])
        with canvas(ax, 6.4, 4.2, title) as axes:
            axes.set_yscale("log", base=2)
            axes.plot(range(len(rows)), sizes, drawstyle="steps-mid", color=COLORS[0])
            axes.axhline(side, color="0.5", linestyle="--", linewidth=1)
            axes.text(0, side, f"image, {side} pixels", color="0.4", ha="left", va="bottom")
            before = 1
            for place, row in enumerate(rows):
                stride = max(row.stride or (before,))
                if stride > before:
                    axes.axvline(place, color="0.85", linewidth=1, zorder=0)
                    axes.text(
                        place,
                        0.01,
                        f" stride {stride}",
                        color="0.4",
                        fontsize=8,
                        rotation=90,
                        transform=axes.get_xaxis_transform(),
                    )
                    before = stride
            beyond = next(
                (row.layer for row, size in zip(rows, sizes, strict=True) if size >= side), None
            )
            finding = (
                "No layer's field covers the image"
                if beyond is None
                else f"Fields as large as the image\nfrom {beyond} on"
            )
            axes.set_title(finding)
            axes.set(xlabel="layer, from input to output", ylabel="receptive field (pixels)")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return axes


@instrument
def layer_fields(model: Model, input_shape: InputShape, *, mode: Mode = EVAL) -> LayerFields:
    """Size, stride, padding and centre of every layer's theoretical receptive field.

    For any network of linen or NNX. input_shape: (height, width, channels), large enough for
    several units per map; or as `InputShape` says, with one image (batch, height, width, channels)
    among the inputs. mode: in training, batch statistics see the whole image, and all that is
    behind them. A layer that is called several times has a row per call. Raises InputError for a
    wrong shape, one that the network cannot take, and a function, which has no layers. Cost: the
    network is traced, not executed. Source: as `receptive_fields`.
    """
    network = network_of(model)
    require_layers(network, "layer_fields")
    inputs = input_shapes(network, input_shape)
    leaves = jax.tree.leaves(inputs)
    images = [index for index, leaf in enumerate(leaves) if len(leaf.shape) == 4]
    if len(images) != 1:
        raise InputError(
            f"input_shape is {typed_shapes(inputs)}, batch included; allowed: (height, width, "
            "channels), or inputs of which one is an image (batch, height, width, channels)"
        )
    known = shapes_of((shapes_of_variables(network, inputs), inputs))
    return _layer_fields(network, *known, images[0], require_mode(mode))


@functools.lru_cache(maxsize=64)
def _layer_fields(
    model: Network, structure: Any, shapes: tuple[Any, ...], image: int, mode: Mode
) -> LayerFields:
    variables, inputs = jax.tree.unflatten(structure, shapes)
    calls = all_calls(model, variables, (inputs, None), mode.train)
    found: list[tuple[str, tuple[int, ...]]] = []

    def maps(inputs: Inputs, variables: Any) -> list[Array]:
        outputs: list[Array] = []
        spaceless: set[tuple[int, ...]] = set()  # shapes

        def keep(layer: Layer, arguments: tuple[Any, ...], output: Any) -> None:
            if output.ndim == 4 and _loses_space(layer.module, arguments, spaceless):
                spaceless.add(output.shape)
            elif not layer.in_transform and output.ndim == 4:
                found.append((layer.label, output.shape[1:]))
                outputs.append(output)

        visit_calls(model, variables, (inputs, None), mode.train, keep)
        return outputs

    with reference_lowering():
        fields = fields_of(jax.make_jaxpr(maps)(inputs, variables), image)
    layers = tuple(
        LayerField(path, shape, field.size, field.stride, field.padding)  # type: ignore[arg-type]
        for (path, shape), field in zip(found, fields, strict=True)
    )
    skipped = tuple(dict.fromkeys(call.path for call in calls if call.in_transform))
    image_shape = jax.tree.leaves(inputs)[image].shape[1:]
    text = mode_text(model, variables, (inputs, None), mode.train)
    return LayerFields(image_shape, mode, text, layers, skipped)


def _loses_space(module: Any, arguments: tuple[Any, ...], spaceless: set[tuple[int, ...]]) -> bool:
    """Whether the four axes of the output are not (batch, rows, columns, channels)."""
    match module:
        case nn.DenseGeneral(features=[_, _, *_]) | nnx.LinearGeneral(out_features=[_, _, *_]):
            return True  # several axes of features, such as those of heads
    shapes = [argument.shape for argument in arguments if isinstance(argument, Array)]
    return bool(shapes) and (len(shapes[0]) != 4 or shapes[0] in spaceless)
