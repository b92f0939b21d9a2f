"""Images of a data set for instruments to look at, as networks see them."""

import jax.numpy as jnp
from jax import Array

from deepjax.data.augment import normalize, resize
from deepjax.data.catalog import Dataset
from deepjax.data.loader import epoch_order, examples
from deepjax.data.source import SplitName, load_split
from deepjax.errors import require


def sample(
    dataset: Dataset, size: int, seed: int = 0, split: SplitName = "train", image_size: int = 0, data_dir: str | None = None
) -> dict[str, Array]:
    """`size` images of a split, drawn without replacement by the seed, normalised and resized, not augmented; and their labels.

    Raises InputError for a size that the split does not have, and for a data set that is not prepared.
    """
    images = load_split(dataset, split, data_dir)
    require(1 <= size <= len(images), "size", size, f"1 to {len(images)}, the images of {dataset.name}'s {split} split")
    chosen = examples(images, epoch_order(len(images), seed, 0)[:size].tolist(), image_size)
    pixels = resize(normalize(jnp.asarray(chosen["image"]), dataset), image_size)
    return {"image": pixels, "label": jnp.asarray(chosen["label"])}
