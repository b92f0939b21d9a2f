"""Preprocessing inside the train step: augmentation, normalisation, resizing, mixing, targets."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from deepjax.data.augment.basic import FULL_BATCH, BatchSlice, augment, normalize, resize
from deepjax.data.augment.erasing import random_erase
from deepjax.data.augment.lighting import shift_colors
from deepjax.data.augment.mixup import mixup_or_cutmix
from deepjax.data.augment.randaugment import rand_augment, trivial_augment
from deepjax.data.catalog import Dataset
from deepjax.training.guard_policy import Policy
from deepjax.training.step.losses import smooth_labels
from deepjax.training.step.remat import Remat

Batch = dict[str, Array]

# Folded into a step's key, far from the numbers that a split uses: "mixe", "oper", "ligh", "eras".
MIX, OPERATE, LIGHT, ERASE = 0x6D697865, 0x6F706572, 0x6C696768, 0x65726173


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The choices of a train step; the defaults are those of `TrainConfig`, which explains them."""

    augment: bool = True
    flip: bool = True
    pca_lighting_std: float = 0.0
    auto_augment: Literal["none", "rand", "trivial"] = "none"
    augment_operations: int = 2
    augment_magnitude: float = 9.0
    random_erasing: float = 0.0
    image_size: int = 0
    auxiliary_weight: float = 0.3
    loss: Literal["softmax", "sigmoid"] = "softmax"
    target_threshold: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    grad_accum_steps: int = 1
    remat: Remat = "none"
    ema_decay: float = 0.0
    frozen: frozenset[str] = frozenset()
    """Paths of the parameters that are not trained."""
    steps_per_epoch: int = 0
    """The state's totals are reset every this many steps; 0: never."""
    policy: Policy = Policy()
    axis: str | None = None
    """The axis of pmap that the step runs under; None: the batch is the global one."""


def preprocess_batch(key: Array, batch: Batch, dataset: Dataset, options: StepOptions) -> Batch:
    """{"image", "label", "target"} as the network and its loss take them.

    key: the step's key, `fold_in(state.key, state.step)`.
    """
    share = (
        FULL_BATCH
        if options.axis is None
        else BatchSlice(lax.axis_index(options.axis), lax.axis_size(options.axis))
    )
    images = _augmented(key, batch["image"], dataset, options, share)
    if options.pca_lighting_std:
        images = shift_colors(
            jax.random.fold_in(key, LIGHT),
            images.astype(jnp.float32),
            options.pca_lighting_std,
            share,
        )
    images = resize(normalize(images, dataset), options.image_size)
    if options.random_erasing:
        images = random_erase(jax.random.fold_in(key, ERASE), images, options.random_erasing, share)
    images, targets = _targets(
        jax.random.fold_in(key, MIX), images, batch["label"], dataset.num_classes, options
    )
    return {"image": images, "label": batch["label"], "target": targets}


def _augmented(
    key: Array, images: Array, dataset: Dataset, options: StepOptions, share: BatchSlice
) -> Array:
    """The augmentations of uint8 images, still uint8."""
    if options.augment:
        as_chosen = dataset if options.flip else dataclasses.replace(dataset, flip=False)
        images = augment(key, images, as_chosen, share)
    key = jax.random.fold_in(key, OPERATE)
    if options.auto_augment == "trivial":
        return trivial_augment(key, images, share)
    if options.auto_augment == "rand":
        mean = jnp.round(jnp.asarray(dataset.mean, jnp.float32)).astype(jnp.uint8)
        return rand_augment(
            key, images, mean, options.augment_operations, options.augment_magnitude, share
        )
    return images


def _targets(
    key: Array, images: Array, labels: Array, classes: int, options: StepOptions
) -> tuple[Array, Array]:
    """Images and targets of the loss: labels, or a value per class if smoothed or mixed."""
    if options.loss == "softmax" and not (
        options.label_smoothing or options.mixup or options.cutmix
    ):
        return images, labels
    targets = smooth_labels(labels, classes, options.label_smoothing)
    images, targets = mixup_or_cutmix(
        key, images, targets, options.mixup, options.cutmix, options.axis
    )
    return images, (targets > options.target_threshold).astype(
        jnp.float32
    ) if options.target_threshold else targets
