"""Read the trained networks of the package: folders of `deepjax export`, each with its run's log.

`experiments/make_trained_networks.py` trains and writes them.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn
from jax import Array

from deepjax.data import Dataset, sample
from deepjax.data.splits import SplitName
from deepjax.errors import InputError, unknown_name_error
from deepjax.evaluation.export.metadata import METADATA_FILE, read_metadata
from deepjax.evaluation.models import PreprocessingOverrides, from_weights
from deepjax.training.config import is_custom
from deepjax.training.metrics.metrics_log import METRICS, Row, read_rows

FOLDER = Path(__file__).parent
PROVENANCE = "provenance.json"


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network for instruments: `trace(net.model, net.variables, net.batch())`."""

    name: str
    model: nn.Module
    variables: dict[str, Any]
    dataset: Dataset
    recipe: Mapping[str, Any]
    """Options of its training that are not the defaults."""
    final: Mapping[str, Any]
    """Errors (fractions), losses and numbers of images at the end of the training."""
    log: list[Row]
    """The rows of its run: the first step, every epoch, the end."""
    provenance: Mapping[str, str]
    """The command that wrote it, the commit, versions and hardware."""

    def batch(self, size: int = 128, split: SplitName = "train", seed: int = 0) -> dict[str, Array]:
        """`size` random images of a split, normalised, and their labels."""
        return sample(self.dataset, size, seed, split)


def list_trained() -> list[str]:
    """The names of the package's trained networks."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{METADATA_FILE}"))


def load_trained(name: str, make: Callable[..., nn.Module] | None = None) -> TrainedNetwork:
    """A trained network of the package.

    make: the class of a network that is not in the registry, as for `open_run`. Raises InputError
    for an unknown name, for such a network without `make`, and for files that are corrupt.
    """
    folder = FOLDER / name
    about = read_metadata(folder) if name in list_trained() else None
    if about is None:
        raise unknown_name_error("trained network", name, list_trained())
    if is_custom(about.network) and make is None:
        where, _, made = about.network.partition(":")
        raise InputError(
            f"{name} is no network of the registry; give make={made}, from {where} import {made}"
        )
    member = from_weights(str(folder), "", None, PreprocessingOverrides(), make=make)
    return TrainedNetwork(
        name,
        member.model,
        member.variables,
        member.dataset,
        about.recipe,
        about.metrics,
        read_rows(folder / METRICS),
        json.loads((folder / PROVENANCE).read_text()),
    )
