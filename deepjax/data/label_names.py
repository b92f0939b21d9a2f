"""The names of a data set's classes."""

from typing import Any

from deepjax.data.catalog import Dataset
from deepjax.data.prepared import find_builder


def label_names(dataset: Dataset, data_dir: str | None = None) -> list[str]:
    """The names of a data set's classes: its own, tfds's, or numbers.

    Some builders of tfds know them only from the prepared data in `data_dir`.
    """
    import tensorflow_datasets as tfds

    numbers = [str(label) for label in range(dataset.num_classes)]
    if dataset.label_names:
        return list(dataset.label_names)
    try:
        builder = find_builder(dataset, data_dir)
    except tfds.core.DatasetNotFoundError:  # a user's own builder that is not prepared here
        return numbers
    features: Any = builder.info.features
    return list(getattr(features[dataset.label], "names", None) or numbers)  # None: an integer
