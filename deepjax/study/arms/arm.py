"""Arms: the networks of a study as it declares them, and as a preset trains them."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from deepjax.data import dataset_info
from deepjax.errors import require
from deepjax.training.config import TrainConfig, replace_options, train_config

EVAL_TRAIN_IMAGES = 4000  # the first training images, on which the training error is computed
OTHER_SEEDS = 500
"""Added to the seeds of an arm that repeats another one for an A/A control."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One network of a study."""

    model: str
    """A name of the registry; with `make`, any name that starts with "own/"."""
    make: Callable[..., nn.Module] | None = None
    """Makes a network that is not in the registry: a module's class, or a partial of one or of
    `create_model`; takes num_classes and dtype. The name has to say what it makes."""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of `TrainConfig` that override those of the preset."""
    part: str = ""
    """Part of the training images, such as "[:4000]"; trained for as many steps as the others."""
    rate_of: str = ""
    """Takes the learning rate of this arm, for repetitions and planted defects; has no pilot."""
    other_seeds: bool = False
    """The same runs under other seeds, for an A/A control."""


@dataclasses.dataclass(frozen=True)
class TrainedArm:
    """An arm in a preset: what is trained, at which rate and with which seeds."""

    name: str
    config: TrainConfig
    rate: float
    seeds: tuple[int, ...]
    pilot: str
    """The arm whose pilot chose the rate."""
    selection: Mapping[str, float]
    """Standard deviation of its "train" and "test" error from the choice of the rate, fractions."""
    make: Callable[..., nn.Module] | None = None
    validation: bool = False
    """Whether its runs are pilots on a part of the training images, tested on the rest."""

    def __post_init__(self) -> None:
        # The name is a directory's, which must stay inside the study's.
        valid = re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII) is not None
        require(valid, "arm", self.name, "letters, digits, '_', and after the first '.' and '-'")

    @property
    def total_steps(self) -> int:
        """Steps of all its runs."""
        return len(self.seeds) * self.config.total_steps

    def run_config(self, rate: float, seed: int) -> TrainConfig:
        """The configuration of one run."""
        return dataclasses.replace(self.config, learning_rate=rate, seed=seed)

    def run_dir(self, out: Path, rate: float, seed: int) -> Path:
        """The run directory of one run. out: the study directory."""
        runs = "validation_runs" if self.validation else "runs"
        return out / runs / self.name / f"lr{rate:g}-seed{seed}"

    def run_dirs(self, out: Path) -> list[Path]:
        """The run directories of all seeds at the arm's rate."""
        return [self.run_dir(out, self.rate, seed) for seed in self.seeds]


def arm_config(
    arm: Arm, dataset: str, training: Mapping[str, Any], validation: bool = False
) -> TrainConfig:
    """The configuration of an arm's runs, less learning rate and seed.

    validation: for pilots, in which the last eighth of the training images takes the place of the
    test images. A part of the training images is trained for as many steps as all of them would be,
    with as many steps of warm-up.
    """
    options = {"eval_train_images": EVAL_TRAIN_IMAGES} | dict(training) | dict(arm.training)
    tested = f"[-{dataset_info(dataset).train_size // 8}:]" if validation else ""
    config = train_config(model=arm.model, dataset=dataset + tested, **options)
    if not arm.part:
        return config
    options["steps"] = config.total_steps
    part = train_config(model=arm.model, dataset=dataset + arm.part + tested, **options)
    warmup = config.optimization.warmup_epochs * config.steps_per_epoch / part.steps_per_epoch
    return replace_options(part, warmup_epochs=warmup)
