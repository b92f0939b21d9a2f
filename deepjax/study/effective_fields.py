"""Effective receptive fields: of random stacks over samples of weights, and of runs by training."""

import functools
from collections.abc import Mapping
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
    kernels: tuple[int, ...],
    activation: Activation,
    seed: int,
    samples: int,
    images: int = 4,
    pointwise: tuple[int, ...] = (),
) -> EffectiveField:
    """The effective field of an untrained stack of convolutions, before its last activation.

    Mean of gradient^2 over `samples` of He-normal weights with `images` images of normal noise
    each; for this power theory gives a width of sqrt(sum of (k^2 - 1) / 12). Images are as large as
    the theoretical field and there is no padding: the map has one unit, which sees no edge.
    pointwise: convolutions, from 1, whose kernels are 0 outside their centre, as a planted defect.
    """
    side = 1 + sum(kernel - 1 for kernel in kernels)
    model = Stack(kernels, width=CHANNELS, activation=activation, norm=False, padding=0)
    fields = []
    for i in range(samples):
        weights_key, images_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
        noise = jax.random.normal(images_key, (images, side, side, CHANNELS))
        variables = init_variables(model, weights_key, noise.shape)
        params = dict(variables["params"])
        for number in pointwise:
            params[f"conv{number}"] = _centre_only(params[f"conv{number}"])
        fields.append(
            effective_field(
                model,
                {"params": params},
                noise,
                layers=f"conv{len(kernels)}",
                power="square",
            )
        )
    return average_fields(fields)


def _centre_only(params: Mapping[str, Array]) -> dict[str, Array]:
    """A convolution's parameters with a kernel that is 0 outside its centre."""
    kernel = params["kernel"]
    row, column = kernel.shape[0] // 2, kernel.shape[1] // 2
    centre = jnp.zeros_like(kernel).at[row, column].set(kernel[row, column])
    return {**params, "kernel": centre}


def field_statistics(field: EffectiveField) -> dict[str, float]:
    """Size and sigma in pixels, and excess kurtosis of the profile, which is 0 of a Gaussian.

    Sigma and kurtosis are means over rows and columns.
    """
    profiles = (field.map.sum(1), field.map.sum(0))
    return {
        "size": field.size,
        "sigma": float(np.mean(field.sigma)),
        "kurtosis": float(np.mean([excess_kurtosis(profile) for profile in profiles])),
    }


def excess_kurtosis(profile: np.ndarray) -> float:
    """The fourth central moment over the variance squared, less 3, of weights at 0, 1, 2, ...

    Of a Gaussian 0, of a triangle -0.6, of a box -1.2, of the logistic function's derivative 1.2.
    NaN where all weight is at one place.
    """
    weights = profile / profile.sum()
    places = np.arange(len(weights))
    from_mean = places - weights @ places
    variance = weights @ from_mean**2
    return float(weights @ from_mean**4 / variance**2 - 3) if variance else float("nan")


def normalized_map(field: EffectiveField) -> list[list[float]]:
    """The map with a sum of 1, as lists for JSON."""
    return (field.map / field.map.sum()).round(6).tolist()


def fields_of_run(
    run: Path, layer: str, images: int, data_dir: str | None, make: Any = None
) -> dict[str, EffectiveField]:
    """The field of a layer's centre unit, "before" and "after" the training of a run.

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

    return {"before": field(fresh), "after": field(trained.variables)}


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
