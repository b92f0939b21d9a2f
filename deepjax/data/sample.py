"""Batches of a data set for instruments, prepared as for training."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from deepjax.data.augment.basic import normalize, resize
from deepjax.data.catalog import Dataset
from deepjax.data.loader import epoch_order, read_examples
from deepjax.data.splits import SplitName, load_split
from deepjax.errors import InputError, require


def sample(
    dataset: Dataset,
    size: int,
    seed: int = 0,
    split: SplitName = "train",
    image_size: int = 0,
    data_dir: str | None = None,
    crop_ratio: float = 0.875,
) -> dict[str, Array]:
    """A random batch of `size` images of a split, normalised and resized, without augmentation.

    Sampled without replacement by the seed. `image_size`: pixels per side, 0 for the stored size;
    `crop_ratio`: fraction of a photograph's shorter side that the central crop covers. Raises
    InputError for a size that the split does not have, a data set that is not prepared, an image
    that cannot be decoded, and images with several labels.
    """
    require(seed >= 0, "seed", seed, "0 or more")
    require(image_size >= 0, "image_size", image_size, "0 (the data set's) or more")
    images = load_split(dataset, split, data_dir)
    require(
        1 <= size <= len(images),
        "size",
        size,
        f"1 to {len(images)}, the images of {dataset.name}'s {split} split",
    )
    chosen = read_examples(
        images, epoch_order(len(images), seed, 0)[:size].tolist(), image_size, crop_ratio
    )
    if np.any(chosen["label"] < 0):
        raise InputError(
            f"dataset {dataset.name!r} has several labels an image, or none, in {dataset.label!r}; "
            "allowed: sets with one"
        )
    pixels = resize(normalize(jnp.asarray(chosen["image"]), dataset), image_size)
    return {"image": pixels, "label": jnp.asarray(chosen["label"])}
