"""deepjax.json of an exported folder: the network, its classes and its preprocessing."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepjax.data import Dataset
from deepjax.errors import InputError, describe_error
from deepjax.evaluation.crops import Interpolation

METADATA_FILE, FORMAT = "deepjax.json", 1
PATHS = "deepjax"  # the layout of variables under their own paths


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known of exported weights. Mean and std of `dataset` are in units of 0 to 255."""

    network: str
    """Name in the registry, or package.module:Class."""
    fields: Mapping[str, Any]
    """Fields of the network that are not its defaults, num_classes among them; without dtype."""
    layout: str
    """Names of the tensors: "torchvision", "timm", or "deepjax" for paths of variables."""
    twins: Mapping[str, str]
    """The network of the same logits by library, where there is one."""
    source: str
    dataset: Dataset
    """That of the training, with the names of the classes."""
    crop: int
    """Side in pixels of the square that is cut from a photograph, or to which arrays are resized.
    """
    shorter_side: int
    """Of a photograph before the crop, in pixels; 0 for arrays."""
    interpolation: Interpolation
    resized: tuple[int, int] | None
    """Height and width to which arrays are resized, where that is no square."""
    assumed: str
    """Message on preprocessing that is assumed, as it is not known for the weights."""
    precision: str
    """Dtype of the activations."""
    licence: str = "unknown"
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the training that are not the defaults; empty for weights without a run."""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Metrics of the run's final row, or of the source of public weights; empty if unknown."""
    fingerprint: str = ""
    """Of the data set, where it has one."""
    average: str = ""
    """Of an average of checkpoints: which they are, in words."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's images."""
        height, width = self.resized or (self.crop, self.crop)
        return height, width, self.dataset.shape[2]

    @property
    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """By channel, for pixels of 0 to 1."""
        mean, std = (
            [round(value / 255, 10) for value in _by_channel(values, self.dataset.shape[2])]
            for values in (self.dataset.mean, self.dataset.std)
        )
        return mean, std


def to_json(about: Metadata) -> str:
    """The text of deepjax.json."""
    fields = {field.name: getattr(about, field.name) for field in dataclasses.fields(about)}
    mean, std = about.mean_and_std
    kept = (
        *("name", "builder", "shape", "num_classes", "encoded", "label_names"),
        *("train_split", "test_split", "train_size", "test_size", "test_fraction", "split_seed"),
    )
    dataset = {name: getattr(about.dataset, name) for name in kept}
    fields["dataset"] = dataset | {"mean": mean, "std": std}
    return json.dumps({"format": FORMAT} | fields, indent=2, ensure_ascii=False) + "\n"


def read_metadata(folder: Path) -> Metadata | None:
    """The metadata of an exported folder; None where it has no deepjax.json.

    Raises InputError for a file that is corrupt or of another version.
    """
    path = folder / METADATA_FILE
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("format")
        if version != FORMAT:
            raise InputError(
                f"{path} has format {version!r}; allowed: {FORMAT}; use the deepjax that wrote it"
            )
        stored = fields.pop("dataset")
        for name in ("mean", "std"):
            stored[name] = tuple(255 * value for value in stored[name])
        stored |= {"label_names": tuple(stored["label_names"]), "shape": tuple(stored["shape"])}
        dataset = Dataset(**stored, flip=False, crop=0, source=str(path))
        fields["resized"] = fields["resized"] and tuple(fields["resized"])
        fields["fields"] = {name: _as_field(value) for name, value in fields["fields"].items()}
        return Metadata(**fields, dataset=dataset)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({describe_error(error)}); export the network again"
        ) from error


def _as_field(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _by_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values
