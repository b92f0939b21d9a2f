"""Theoretical receptive fields of every layer of a network, with branches."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.calls import all_calls, path_of, visit_calls
from deepjax.analysis.core.module import as_static, initialise
from deepjax.analysis.receptive_field.theoretical import ReceptiveField, receptive_fields
from deepjax.errors import require

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


@dataclasses.dataclass(frozen=True)
class LayerFields:
    """Every layer that returns a map, in the order in which their calls end.

    A map is an array (1, height, width, channels). Other arrays of four axes, such as the queries
    of attention (1, tokens, heads, features), and arrays of their shape, are not maps.
    """

    input_shape: tuple[int, int, int]
    layers: tuple[LayerField, ...]
    skipped_layers: tuple[str, ...]
    """Layers inside nn.scan, nn.remat or the like, which their outputs cannot leave."""

    def rows(self) -> list[dict[str, Any]]:
        """One dict per layer."""
        return [dataclasses.asdict(layer) | {"centre": layer.centre} for layer in self.layers]

    def plot(self, ax: Any = None) -> Any:
        """Field size against depth, with the image size and the strides; returns the Axes."""
        from matplotlib.ticker import FuncFormatter

        from deepjax.analysis.plots import COLORS, canvas

        rows = [row for row in self.layers if row.size is not None and max(row.size) > 0]
        sizes = [max(row.size or (0,)) for row in rows]
        side = max(self.input_shape[:2])
        with canvas(ax, 6.4, 4.2) as axes:
            axes.set_yscale("log", base=2)
            axes.plot(range(len(rows)), sizes, drawstyle="steps-mid", color=COLORS[0])
            axes.axhline(side, color="0.5", linestyle="--", linewidth=1)
            axes.text(
                len(rows) - 1, side, f"image, {side} pixels", color="0.4", ha="right", va="top"
            )
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
            title = (
                "No layer's field covers the image"
                if beyond is None
                else f"Fields as large as the image from {beyond} on"
            )
            axes.set(
                title=title, xlabel="layer, from input to output", ylabel="receptive field (pixels)"
            )
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return axes


def layer_fields(model: nn.Module, input_shape: tuple[int, int, int]) -> LayerFields:
    """Size, stride, padding and centre of every layer's theoretical receptive field in evaluation.

    For any linen module. input_shape: (height, width, channels), large enough for several units
    per map. A layer that is called several times has a row per call. Raises InputError for a wrong
    shape, or one that the network cannot take. Cost: the network is traced, not executed.
    Source: as `receptive_fields`.
    """
    require(
        len(input_shape) == 3 and min(input_shape) >= 1,
        "input_shape",
        input_shape,
        "(height, width, channels)",
    )
    return _layer_fields(as_static(model), tuple(map(int, input_shape)))


@functools.lru_cache(maxsize=64)
def _layer_fields(model: nn.Module, input_shape: tuple[int, int, int]) -> LayerFields:
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    variables = jax.eval_shape(lambda images: initialise(model, images), images)
    calls = all_calls(model, variables, images, train=False)
    found: list[tuple[str, tuple[int, ...]]] = []

    def maps(images: Array, variables: Any) -> list[Array]:
        outputs: list[Array] = []
        spaceless: set[tuple[int, ...]] = set()  # shapes

        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any, inside: bool) -> None:
            if output.ndim == 4 and _loses_space(module, arguments, spaceless):
                spaceless.add(output.shape)
            elif not inside and output.ndim == 4:
                found.append((path_of(module), output.shape[1:]))
                outputs.append(output)

        visit_calls(model, variables, images, False, keep)
        return outputs

    fields: list[ReceptiveField] = receptive_fields(maps, input_shape, variables)
    layers = tuple(
        LayerField(path, shape, field.size, field.stride, field.padding)  # type: ignore[arg-type]
        for (path, shape), field in zip(found, fields, strict=True)
    )
    return LayerFields(
        input_shape, layers, tuple(dict.fromkeys(call.path for call in calls if call.in_transform))
    )


def _loses_space(
    module: nn.Module, arguments: tuple[Any, ...], spaceless: set[tuple[int, ...]]
) -> bool:
    """Whether the four axes of the output are not (batch, rows, columns, channels)."""
    features = getattr(module, "features", ()) if isinstance(module, nn.DenseGeneral) else ()
    shapes = [argument.shape for argument in arguments if isinstance(argument, Array)]
    several = isinstance(features, tuple | list) and len(features) > 1
    return several or (bool(shapes) and (len(shapes[0]) != 4 or shapes[0] in spaceless))
