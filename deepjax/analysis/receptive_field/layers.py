"""Theoretical receptive fields of every layer of a network, branches included."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.analysis.core.calls import all_calls, path_of, visit_calls
from deepjax.analysis.core.module import hashable, initialise
from deepjax.analysis.receptive_field.theoretical import ReceptiveField, receptive_fields
from deepjax.errors import require

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class LayerField:
    """What a unit of a layer's map sees of the image, in pixels as (rows, columns). None as in `ReceptiveField`."""

    layer: str
    """Path of the module; "" is the network."""
    shape: tuple[int, int, int]
    """Of its output for one image: height, width, channels."""
    size: Pair | None
    stride: Pair | None
    """Pixels between neighbouring units' fields."""
    padding: Pair | None
    """Pixels by which the first unit's field reaches beyond the image's edge."""

    @property
    def centre(self) -> tuple[float, float] | None:
        """Middle of the first unit's field; 0 is the middle of the first pixel. Unit i lies at centre + i * stride."""
        if self.size is None or self.padding is None:
            return None
        rows, columns = (
            (size - 1) / 2 - padding for size, padding in zip(self.size, self.padding, strict=True)
        )
        return rows, columns


@dataclasses.dataclass(frozen=True)
class LayerFields:
    """Every layer that returns a map, in the order in which the forward pass ends it.

    A map is an array (1, height, width, channels). Arrays of four axes that a layer makes of others, such as an attention's
    queries (1, tokens, heads, features), and those of their shape, have no space and are none.
    """

    input_shape: tuple[int, int, int]
    layers: tuple[LayerField, ...]
    skipped_layers: tuple[str, ...]
    """Layers inside nn.scan, nn.remat or the like, whose outputs cannot be taken out of the forward pass."""

    def rows(self) -> list[dict[str, Any]]:
        """A plain dict a layer."""
        return [dataclasses.asdict(layer) | {"centre": layer.centre} for layer in self.layers]

    def plot(self, ax: Any = None) -> Any:
        """Size of the field against depth, with the image's size and the places where the stride grows; returns the Axes."""
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
    """Size, stride, padding and centre of every layer's theoretical receptive field in evaluation, for any linen module.

    input_shape: (height, width, channels); best so large that each map has several units. A layer that is called several times
    has a row for each call. Raises InputError for another shape, or one that the network cannot take.
    Cost: none of the network's; it is traced, and followed interval by interval. Source: as `receptive_fields`.
    """
    require(
        len(input_shape) == 3 and min(input_shape) >= 1,
        "input_shape",
        input_shape,
        "(height, width, channels)",
    )
    return _layer_fields(hashable(model), tuple(map(int, input_shape)))


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
    """Whether four axes of the module's output are no batch, rows, columns and channels."""
    features = getattr(module, "features", ()) if isinstance(module, nn.DenseGeneral) else ()
    shapes = [argument.shape for argument in arguments if isinstance(argument, Array)]
    several = isinstance(features, tuple | list) and len(features) > 1
    return several or (bool(shapes) and (len(shapes[0]) != 4 or shapes[0] in spaceless))
