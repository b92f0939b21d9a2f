"""Data sets by their tfds names, read as ArrayRecord without TensorFlow.

The order of the examples is a pure function of (seed, epoch).
"""

from deepjax.data.catalog import (
    Dataset,
    dataset_info,
    list_datasets,
    own_dataset,
    register,
)
from deepjax.data.encoded_split import EncodedSplit
from deepjax.data.image.crops import Crops
from deepjax.data.loader import eval_batches, train_batches
from deepjax.data.sample import sample
from deepjax.data.splits import Split, load_split

__all__ = [
    "Crops",
    "Dataset",
    "EncodedSplit",
    "Split",
    "dataset_info",
    "eval_batches",
    "list_datasets",
    "load_split",
    "own_dataset",
    "register",
    "sample",
    "train_batches",
]
