"""Receptive fields for studies: of random stacks over many draws of their weights, and of networks before and after training."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn
from jax import Array

from deepjax.analysis import (
    EffectiveField,
    average_fields,
    effective_field,
    init_variables,
    layer_fields,
)
from deepjax.analysis.plots import COLORS, STYLE, Curve, save
from deepjax.study.networks import Activation, Stack
from deepjax.study.report.curves import Panel
from deepjax.study.stats.verdict import mean_interval

CHANNELS = 16  # of images and of maps in a random stack: |gradient|^2 is averaged over the images' channels


def theoretical_field(kernels: tuple[int, ...]) -> int:
    """Pixels a side that a unit of a stack of these convolutions can see, from its traced computation."""
    fields = {each.layer: each.size for each in layer_fields(Stack(kernels), (32, 32, 1)).layers}
    return (fields[f"conv{len(kernels)}"] or (0, 0))[0]


def stack_field(
    kernels: tuple[int, ...], activation: Activation, seed: int, draws: int, images: int = 4
) -> EffectiveField:
    """The field of an untrained stack of convolutions without padding, on images just as large as its theoretical field.

    Mean of gradient^2, the power for which theory gives the width sqrt(sum of (k^2 - 1) / 12), over `draws` of the weights (He's
    normal) with `images` images of normal noise each; the last convolution is taken before its activation.
    Without padding the map has one unit, which sees no edge.
    """
    side = 1 + sum(kernel - 1 for kernel in kernels)
    model = Stack(kernels, width=CHANNELS, activation=activation, norm=False, padding=0)
    fields = []
    for draw in range(draws):
        weights_key, images_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), draw))
        noise = jax.random.normal(images_key, (images, side, side, CHANNELS))
        variables = init_variables(model, weights_key, noise.shape)
        fields.append(
            effective_field(model, variables, noise, layer=f"conv{len(kernels)}", power="square")
        )
    return average_fields(fields)


def field_statistics(fields: Sequence[EffectiveField]) -> dict[str, list[float]]:
    """Of each field size and sigma in pixels (of sigma the mean over rows and columns), and R^2 of the Gaussian of its moments."""
    sigmas = [float(np.mean(field.sigma)) for field in fields]
    return {
        "size": [field.size for field in fields],
        "sigma": sigmas,
        "r2": [field.r2 for field in fields],
    }


def normalized_maps(fields: Sequence[EffectiveField]) -> list[list[list[float]]]:
    """Their maps as shares of 1, as JSON has them."""
    return [(field.map / field.map.sum()).round(6).tolist() for field in fields]


def fields_of_run(
    run: Path, layer: str, images: int, data_dir: str | None, make: Any = None
) -> list[EffectiveField]:
    """The field of a layer's centre unit before the first step and after the last one of a training run.

    Mean of gradient^2 over test images in evaluation mode, batch norm's statistics settled on these images both times.
    The images are drawn by the run's seed.
    """
    from deepjax.training import open_run
    from deepjax.training.step.state import split_seed

    trained = open_run(run, data_dir=data_dir, make=make)
    fresh = init_variables(
        trained.model, split_seed(trained.config.seed)[0], (1, *trained.config.input_shape)
    )
    batch = trained.batch(images, "test", trained.config.seed)["image"]

    def field(variables: dict[str, Any]) -> EffectiveField:
        return effective_field(
            trained.model,
            recalibrate_batch_norm(trained.model, variables, batch),
            batch,
            layer=layer,
            power="square",
        )

    return [field(fresh), field(trained.variables)]


def recalibrate_batch_norm(
    model: nn.Module, variables: dict[str, Any], images: Array
) -> dict[str, Any]:
    """The variables with batch norm's running averages at the statistics of these images; without batch norm as they are.

    An untrained network has running averages of 0 and 1, in whose evaluation mode its signals are not what training sees.
    An average moves from r to a r + (1 - a) s: two passes, from r = 0 and from r = 1, tell a and s.
    """
    if not variables.get("batch_stats"):
        return variables
    fills = (
        jax.tree.map(fill, variables["batch_stats"]) for fill in (jnp.zeros_like, jnp.ones_like)
    )
    zero, one = (
        _moved(model, {"params": variables["params"], "batch_stats": filled}, images)
        for filled in fills
    )
    return {
        "params": variables["params"],
        "batch_stats": jax.tree.map(lambda z, o: z / (1 - (o - z)), zero, one),
    }


@functools.partial(jax.jit, static_argnames="model")
def _moved(model: nn.Module, variables: dict[str, Any], images: Array) -> Any:
    """The running averages after one pass in training mode."""
    _, state = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return state["batch_stats"]


def depth_panel(
    kind: str,
    depths: Sequence[int],
    sizes: Sequence[Sequence[float]],
    sigmas: Sequence[Sequence[float]],
) -> Panel:
    """Fields of stacks of 3x3 convolutions over their depth; the title states the power that the effective size follows.

    sizes, sigmas: (seeds, depths), in pixels.
    """
    slope = float(np.polyfit(np.log(depths), np.log(np.mean(sizes, 0)), 1)[0])
    curves = [
        Curve(
            "theoretical",
            depths,
            [[float(theoretical_field((3,) * depth)) for depth in depths]],
            COLORS[1],
        ),
        Curve("effective", depths, sizes, COLORS[0]),
        Curve("sigma", depths, sigmas, COLORS[2]),
        Curve(
            "_theory of sigma",
            depths,
            [[float(np.sqrt(2 * depth / 3)) for depth in depths]],
            "black",
            ":",
        ),
    ]
    return f"{kind}: the effective field grows\nas depth to the power {slope:.2f}", curves


def training_figure(found: Mapping[str, Sequence[Any]], path: Path) -> Path:
    """Maps before and after training side by side, each relative to its peak, mean over seeds; a row a layer. Written to `path`.

    found: by layer the maps (seeds, 2, height, width), and the sigmas (seeds, 2) in pixels.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(found), 2, figsize=(8.6, 3.7 * len(found)), sharex=True, sharey=True, squeeze=False
        )
        for row, (layer, (maps, sigmas)) in zip(axes, found.items(), strict=True):
            widths = mean_interval((np.asarray(sigmas)[:, 1] - np.asarray(sigmas)[:, 0]).tolist())
            titles = (
                f"{layer} before training",
                f"after: sigma {widths.effect:+.1f} [{widths.low:+.1f}, {widths.high:+.1f}] pixels",
            )
            for ax, title, values in zip(row, titles, np.mean(maps, 0), strict=True):
                image = ax.imshow(
                    values / values.max(), cmap="magma", vmin=0, vmax=1, interpolation="nearest"
                )
                ax.set(title=title[0].upper() + title[1:])
                ax.grid(False)
            row[0].set_ylabel("row (pixels)")
        for ax in axes[-1]:
            ax.set_xlabel("column (pixels)")
        figure.colorbar(image, ax=list(axes.flat), shrink=0.6, label="mean gradient² / its peak")
    return save(figure, path)
