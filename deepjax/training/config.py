"""The configuration of one training run: frozen, checked when it is made, stored as config.json."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from deepjax.data import Dataset, dataset_info
from deepjax.errors import InputError, require, unknown_name_error
from deepjax.models import model_info
from deepjax.training.config_groups import (
    AugmentationConfig,
    DataConfig,
    GuardConfig,
    ObjectiveConfig,
    OptimizationConfig,
    TransferConfig,
)
from deepjax.training.guard_policy import Policy
from deepjax.training.validation import at_least, between, check_types, check_values, half_open

CUSTOM_NETWORK_PREFIX = "own/"  # of names of networks that the caller makes, not the registry
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
MAX_EPOCHS, MAX_STEPS = 1_000_000, 1_000_000_000  # the step is an int32


def is_import_path(model: str) -> bool:
    """Whether the name of a network is package.module:Class, which only a caller imports."""
    return _IMPORT_PATH.fullmatch(model) is not None


def is_custom(model: str) -> bool:
    """Whether a network is not of the registry: its maker has to be given."""
    return model.startswith(CUSTOM_NETWORK_PREFIX) or is_import_path(model)


def is_own(model: str) -> bool:
    """Whether a network is the user's own: not of the registry, or registered there."""
    return is_custom(model) or not model_info(model).table


def parse_fields(arguments: Sequence[str]) -> dict[str, Any]:
    """Fields from NAME=VALUE: values are JSON, or text where they are none.

    Raises InputError for an argument without a name, and for a name that is given twice.

    >>> parse_fields(["width=8", "stages=[1,1]", "norm=none", "auxiliary=false"])
    {'width': 8, 'stages': (1, 1), 'norm': 'none', 'auxiliary': False}
    """
    found: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        valid = bool(equals) and name.isidentifier() and name not in found
        require(valid, "model_args", argument, "NAME=VALUE, each name once")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is computed. Defaults: He et al. 2015, section 4.2, except length and schedule.

    Options that most runs set are fields; the others are in groups. `train_config` and
    `replace_options` take all of them by name, as the command line does.
    """

    model: str
    """Network, e.g. cifar_resnet20 (`deepjax models` lists all), or package.module:Class of your
    own."""
    dataset: str = "digits"
    """Data set: digits, fashion_mnist_small, fashion_mnist, cifar10, cifar100, svhn_cropped,
    imagenet2012, imagenette/160px-v2, /320px-v2, /full-size-v2, a registered one, or the path of
    your own images (a folder of classes, a CSV list). NAME[:N]: with its first N training images
    only; NAME[-N:]: the last N training images, held out, take the place of the test images."""
    epochs: int = 10
    """Passes over the training images."""
    steps: int = 0
    """Training steps, instead of epochs; 0: use epochs."""
    batch_size: int = 128
    """Images per step, over all devices."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    grad_accum_steps: int = 1
    """Parts of a batch computed one after the other; batch norm uses the statistics of a part."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, statistics, loss and reductions are always float32."""
    remat: Literal["none", "convolutions", "blocks"] = "none"
    """Rematerialisation: keep all activations, outputs of convolutions, or of blocks."""
    ema_decay: float = 0.0
    """Decay per step of averages of parameters and statistics, used in evaluation; 0: off."""
    width: int = 0
    """Filters of the first stage; 0: the paper's."""
    bn_scope: Literal["global", "replica"] | int = "global"
    """Batch-norm statistics over the global batch, each device, or ghost batches of N images."""
    drop_path: float = 0.0
    """Stochastic depth: drop probability of the last residual branch, rising linearly from 0."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""
    model_args: tuple[str, ...] = ()
    """Fields of the network, NAME=VALUE each, e.g. stages=[1,1,1] norm=none."""
    optimization: OptimizationConfig = OptimizationConfig()
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    guard: GuardConfig = GuardConfig()
    transfer: TransferConfig = TransferConfig()

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise InputError(
                f"model is an object of {type(self.model).__name__}; allowed: the name of a "
                f"network. Your own: train_config('{CUSTOM_NETWORK_PREFIX}NAME'), and "
                "train(config, output_dir, make=ITS_CLASS)"
            )
        check_types(self)
        if not is_custom(self.model):
            model_info(self.model)
        parse_fields(self.model_args)
        fraction = half_open(0, 1, "0 (none) up to, not including, 1")
        check_values(
            self,
            epochs=between(1, MAX_EPOCHS),
            steps=between(0, MAX_STEPS, f"0 (count by epochs) to {MAX_STEPS}"),
            batch_size=at_least(1),
            learning_rate=(lambda value: 0 < value < 1e4, "above 0, below 10000"),
            drop_path=fraction,
            grad_accum_steps=at_least(1),
            ema_decay=fraction,
            bn_scope=(
                lambda value: isinstance(value, str) or value >= 1,
                "'global', 'replica', 1 or more",
            ),
            width=at_least(0, "0 (the paper's) or more"),
            seed=between(0, 2**32 - 1),
        )
        self._check_dataset()

    def _check_dataset(self) -> None:
        dataset = self.described
        has_both = len(dataset.splits) == 2
        require(has_both, "dataset", self.dataset, "one with training and test images")
        lighting = self.augmentation.pca_lighting_std
        channels, operations = dataset.shape[2], self.augmentation.auto_augment
        grey = f"0 for {self.dataset}, whose images are not RGB"
        require(not lighting or channels == 3, "pca_lighting_std", lighting, grey)
        others = f"'none' for {self.dataset}, whose images have {channels} channels"
        require(operations == "none" or channels in (1, 3), "auto_augment", operations, others)

    @functools.cached_property
    def described(self) -> Dataset:
        """The data set, as it was when this configuration was made."""
        return dataset_info(self.dataset)

    @property
    def policy(self) -> Policy:
        """What the guard in the step does."""
        guard = self.guard
        return Policy(guard.on_nonfinite, guard.max_skipped_steps, guard.spike_sigmas)

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return self.described.num_classes

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches in the training images."""
        size = self.described.train_size
        allowed = f"1 to {size} (the training images of {self.dataset})"
        require(self.batch_size <= size, "batch_size", self.batch_size, allowed)
        return size // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the complete training."""
        total = self.steps or self.epochs * self.steps_per_epoch
        allowed = f"at most {MAX_STEPS} steps in all, here {total}"
        require(total <= MAX_STEPS, "epochs", self.epochs, allowed)
        return total

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's input at the end of the training."""
        height, width, channels = self.described.shape
        size = self._final_size
        return (size or height, size or width, channels)

    @property
    def eval_resize(self) -> int:
        """Pixels a side to which images of one size are resized for evaluation; 0: unchanged."""
        return self.data.eval_size or self._final_size

    @property
    def eval_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's input in evaluation."""
        height, width, channels = self.input_shape
        return (self.data.eval_size or height, self.data.eval_size or width, channels)

    def shape_at(self, step: int) -> tuple[int, int, int]:
        """Height, width and channels of the network's input at training step `step` (from 0)."""
        sizes = self.data.progressive_sizes
        if not sizes:
            return self.input_shape
        size = size_at(sizes, step, self.total_steps)
        return (size, size, self.input_shape[2])

    @property
    def _final_size(self) -> int:
        sizes = self.data.progressive_sizes
        return sizes[-1] if sizes else self.data.image_size


def size_at(sizes: Sequence[int], step: int, total_steps: int) -> int:
    """The image size of a step (from 0), where each size has an equal part of the training."""
    return sizes[min(step * len(sizes) // total_steps, len(sizes) - 1)]


_GROUPS: dict[str, type] = {
    "optimization": OptimizationConfig,
    "data": DataConfig,
    "augmentation": AugmentationConfig,
    "objective": ObjectiveConfig,
    "guard": GuardConfig,
    "transfer": TransferConfig,
}
OPTION_GROUPS: Mapping[str, str] = MappingProxyType(
    {f.name: "" for f in dataclasses.fields(TrainConfig) if f.name not in _GROUPS}
    | {f.name: name for name, kind in _GROUPS.items() for f in dataclasses.fields(kind)}
)
"""The group of each option; "" for a field of TrainConfig itself."""


def train_config(model: str, dataset: str = "digits", **options: Any) -> TrainConfig:
    """A configuration from options of any group, as the command line takes them.

    Raises InputError for an unknown option and for a value that is not allowed.

    >>> train_config("cifar_resnet20", epochs=2, mixup=0.2).augmentation.mixup
    0.2
    """
    return replace_options(TrainConfig(model, dataset), **options)


def replace_options(config: TrainConfig, **options: Any) -> TrainConfig:
    """A copy of a configuration with other values for some options, of any group.

    Raises InputError for an unknown option and for a value that is not allowed.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        if name not in OPTION_GROUPS:
            raise unknown_name_error("option", name, OPTION_GROUPS)
        changes.setdefault(OPTION_GROUPS[name], {})[name] = value
    fields = changes.pop("", {})
    groups = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in changes.items()
    }
    return dataclasses.replace(config, **fields, **groups)


def options_of(config: TrainConfig) -> dict[str, Any]:
    """All options of a configuration by name, without their groups."""
    return {
        name: getattr(getattr(config, group) if group else config, name)
        for name, group in OPTION_GROUPS.items()
    }
