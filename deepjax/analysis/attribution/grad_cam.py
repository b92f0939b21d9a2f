"""Grad-CAM: the places in a layer's output on which a class score depends.

Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, "Grad-CAM: visual explanations from deep
networks via gradient-based localization", 2017 (arXiv:1610.02391).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.analysis.attribution.montage import MAX_IMAGES, draw_montage, normalised
from deepjax.analysis.attribution.scores import (
    BatchScores,
    Classes,
    class_scores,
    require_scores,
    sum_of_scores,
)
from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.params import widened
from deepjax.analysis.core.result import Result
from deepjax.analysis.layers.taps import taps
from deepjax.analysis.network.batch import Batches
from deepjax.analysis.network.module import Model
from deepjax.analysis.network.taps import require_layers
from deepjax.analysis.network.task import make_task
from deepjax.errors import InputError, require


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GradCam(Result):
    """A map for each example: how much each place of a layer speaks for a class."""

    layer: str
    classes: np.ndarray | None
    """(examples,): the class of each map; None where the outputs have no axis of classes."""
    scores: np.ndarray
    """(examples,): the outputs of these classes."""
    maps: np.ndarray
    """(examples, *places of the layer): the weighted sum of channels, negative parts set to 0."""
    image_maps: np.ndarray | None
    """The maps in the resolution of the images, (examples, height, width), by bilinear
    interpolation; None where no input has that many axes."""
    images: np.ndarray | None
    """The input that the maps are drawn over."""
    mode: Mode
    mode_text: str
    data_text: str

    def summary(self) -> dict[str, Any]:
        """Maps, how many are 0 everywhere, and the fraction of the places that they single out."""
        areas = _effective_area(self.maps)
        known = areas[np.isfinite(areas)]
        return {
            "maps": len(self.maps),
            "mean score": float(self.scores.mean()),
            "empty maps": len(areas) - len(known),
            "effective area": float(known.mean()) if len(known) else math.nan,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per example: its class, score, and the place of the map's maximum."""
        areas = _effective_area(self.maps)
        return [
            {
                "example": index,
                "class": None if self.classes is None else int(self.classes[index]),
                "score": float(self.scores[index]),
                "peak": float(each.max()),
                "peak at": tuple(map(int, np.unravel_index(each.argmax(), each.shape))),
                "effective area": float(areas[index]),
            }
            for index, each in enumerate(self.maps)
        ]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The first images, and below them the maps over the images; returns the matplotlib Axes.

        Without images: the maps of all examples as rows.
        """
        from deepjax.analysis.plots import canvas

        maps = self.maps if self.image_maps is None else self.image_maps
        shown = min(len(maps), MAX_IMAGES)
        is_image = self.images is not None and self.images.ndim == 4
        with canvas(ax, 1.5 * shown + 0.6 if is_image else 6.4, 3.6, title) as axes:
            if is_image:
                tops = maps[:shown].max(axis=(1, 2), keepdims=True)
                heat = maps[:shown] / np.where(tops > 0, tops, 1)
                images = normalised(self.images[:shown])  # type: ignore[index]
                over = {"cmap": "inferno", "alpha": 0.6, "vmin": 0, "vmax": 1}
                draw_montage(axes, [([images], {}), ([images, heat], over)], self._names(shown))
            else:
                flat = maps.reshape(len(maps), -1)
                image = axes.imshow(flat, aspect="auto", cmap="inferno", interpolation="nearest")
                axes.figure.colorbar(image, ax=axes, label="Grad-CAM")
                axes.set(xlabel="place", ylabel="example")
                axes.grid(False)
            axes.set_title(f"Grad-CAM of {self.layer}\n{self.data_text}")
        return axes

    def _names(self, shown: int) -> list[str]:
        if self.classes is None:
            return [f"{score:.3g}" for score in self.scores[:shown]]
        return [f"class {each}" for each in self.classes[:shown]]


@instrument
def grad_cam(
    model: Model,
    variables: Any,
    batch: Batches,
    layers: str,
    *,
    mode: Mode = EVAL,
    key: Array | None = None,
    classes: Classes = None,
) -> GradCam:
    """Grad-CAM maps of one layer: ReLU of the sum of its channels, weighted by mean gradients.

    The weight of a channel is the gradient of the class score, before any softmax, averaged over
    the places of the layer. layers: the path of one layer that returns (examples, places...,
    channels), usually the last convolution. classes: one for all, or (examples,); default those
    that the network predicts. A network with outputs (examples,) has one score.
    batch: one, or several, whose maps are joined; also the inputs alone. In training with batch
    statistics the examples of a batch influence each other, and the gradient is that of the sum of
    their scores.
    Raises InputError for an unknown layer, one without places, and one that `taps` refuses (called
    more than once, inside nn.scan); for outputs that are not scores, and for a function.
    Cost: two forward passes and one backward pass; memory: twice the layer's output.
    Source: Selvaraju et al. 2017, section 3, equations 1 and 2.
    """
    task = make_task(model, variables, batch, loss=require_scores, mode=mode, key=key, what="score")
    require_layers(task.network, "grad_cam")
    require(isinstance(layers, str), "layers", layers, "the path of one layer")
    scores, chosen = class_scores(task, classes)
    parts = [(each.inputs, each.classes) for each in scores]
    found = taps(
        task.network,
        task.variables,
        parts if len(parts) > 1 else parts[0],
        layers,
        loss=sum_of_scores,
        mode=mode,
        key=task.key,
    )
    if len(found) != 1:
        raise InputError(f"layers selects {', '.join(found)}; allowed: one output of a layer")
    ((name, tap),) = found.items()
    shape, examples = tap.activation.shape, sum(len(each.values) for each in scores)
    if len(shape) < 3 or shape[0] != examples:
        raise InputError(
            f"layer {name!r} returns {shape} for {examples} examples; allowed: a layer that "
            "returns (examples, places..., channels)"
        )
    maps = _maps(tap.activation, tap.gradient * len(parts))
    images = _images(scores, maps.ndim + 1)
    return GradCam(
        name,
        chosen,
        np.concatenate([each.values for each in scores]),
        np.asarray(maps),
        None if images is None else np.asarray(_resized(maps, images.shape[1:-1])),
        images,
        mode,
        task.mode_text,
        task.data_text,
    )


def _images(scores: Sequence[BatchScores], axes: int) -> np.ndarray | None:
    """The first input with so many axes."""
    first = [jnp.ndim(each) for each in jax.tree.leaves(scores[0].inputs)]
    if axes not in first:
        return None
    at = first.index(axes)
    return np.concatenate([jax.tree.leaves(each.inputs)[at] for each in scores])


@jax.jit
def _maps(activation: Array, gradient: Array) -> Array:
    places = tuple(range(1, activation.ndim - 1))
    weights = jnp.mean(widened(gradient), axis=places, keepdims=True)
    return jax.nn.relu(jnp.sum(weights * widened(activation), axis=-1))


def _resized(maps: Array, places: tuple[int, ...]) -> Array:
    return jax.image.resize(maps, (maps.shape[0], *places), "linear")


def _effective_area(maps: np.ndarray) -> np.ndarray:
    """(examples,): (sum m)^2 / sum m^2 as a fraction of the places; NaN for a map of zeros."""
    flat = maps.reshape(len(maps), -1).astype(float)
    squares = np.square(flat).sum(axis=1)
    return np.square(flat.sum(axis=1)) / np.where(squares > 0, squares, np.nan) / flat.shape[1]
