"""Effective receptive fields: of random stacks over draws of weights, and of runs by training."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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
from deepjax.study.networks import Activation, Stack

# Of images and of maps in a random stack; |gradient|^2 is averaged over the images' channels.
CHANNELS = 16


def theoretical_field(kernels: tuple[int, ...]) -> int:
    """Side in pixels of the theoretical field of a stack of convolutions, by tracing it."""
    fields = {each.layer: each.size for each in layer_fields(Stack(kernels), (32, 32, 1)).layers}
    return (fields[f"conv{len(kernels)}"] or (0, 0))[0]


def stack_field(
    kernels: tuple[int, ...], activation: Activation, seed: int, draws: int, images: int = 4
) -> EffectiveField:
    """The effective field of an untrained stack of convolutions, before its last activation.

    Mean of gradient^2 over `draws` of He-normal weights with `images` images of normal noise each;
    for this power theory gives a width of sqrt(sum of (k^2 - 1) / 12). Images are as large as the
    theoretical field and there is no padding: the map has one unit, which sees no edge.
    """
    side = 1 + sum(kernel - 1 for kernel in kernels)
    model = Stack(kernels, width=CHANNELS, activation=activation, norm=False, padding=0)
    fields = []
    for draw in range(draws):
        weights_key, images_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), draw))
        noise = jax.random.normal(images_key, (images, side, side, CHANNELS))
        variables = init_variables(model, weights_key, noise.shape)
        fields.append(
            effective_field(model, variables, noise, layers=f"conv{len(kernels)}", power="square")
        )
    return average_fields(fields)


def field_statistics(fields: Sequence[EffectiveField]) -> dict[str, list[float]]:
    """By field: size and sigma in pixels, and R^2 of the Gaussian with its moments.

    Sigma is the mean over rows and columns.
    """
    sigmas = [float(np.mean(field.sigma)) for field in fields]
    return {
        "size": [field.size for field in fields],
        "sigma": sigmas,
        "r2": [field.r2 for field in fields],
    }


def normalized_maps(fields: Sequence[EffectiveField]) -> list[list[list[float]]]:
    """The maps with a sum of 1, as lists for JSON."""
    return [(field.map / field.map.sum()).round(6).tolist() for field in fields]


def fields_of_run(
    run: Path, layer: str, images: int, data_dir: str | None, make: Any = None
) -> list[EffectiveField]:
    """The field of a layer's centre unit, before and after the training of a run.

    Mean of gradient^2 over test images, sampled by the run's seed, in evaluation mode with batch
    norm recalibrated to these images.
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
            layers=layer,
            power="square",
        )

    return [field(fresh), field(trained.variables)]


def recalibrate_batch_norm(
    model: nn.Module, variables: dict[str, Any], images: Array
) -> dict[str, Any]:
    """The variables with these images' statistics as batch norm's running averages.

    An untrained network has running averages of 0 and 1, with which its signals in evaluation mode
    differ from those in training. An average moves from r to a r + (1 - a) s: two passes, from
    r = 0 and from r = 1, give a and s. Without batch norm the variables are returned as they are.
    """
    if not variables.get("batch_stats"):
        return variables
    fills = (
        jax.tree.map(fill, variables["batch_stats"]) for fill in (jnp.zeros_like, jnp.ones_like)
    )
    zero, one = (
        _updated_averages(model, {"params": variables["params"], "batch_stats": filled}, images)
        for filled in fills
    )
    return {
        "params": variables["params"],
        "batch_stats": jax.tree.map(lambda z, o: z / (1 - (o - z)), zero, one),
    }


@functools.partial(jax.jit, static_argnames="model")
def _updated_averages(model: nn.Module, variables: dict[str, Any], images: Array) -> Any:
    """The running averages after one pass in training mode."""
    _, state = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return state["batch_stats"]
