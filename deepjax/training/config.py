"""The configuration of one training run: frozen, checked when made, stored as config.json and compared on resume."""

import contextlib
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any, Literal

from deepjax.data import dataset_info
from deepjax.errors import InputError, require
from deepjax.models import model_info
from deepjax.training.fields import check_types
from deepjax.training.guard import MOST_SKIPS, Policy
from deepjax.training.manifest import sync_folder

MOST_EPOCHS, MOST_STEPS = 1_000_000, 1_000_000_000  # the step is an int32
OWN = "own/"  # a name that starts so is of a network that the caller makes, not of the registry


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is computed. The defaults are those of He et al. 2015 (section 4.2) but for the length, warm-up and decay mask."""

    model: str
    """Name of the network, e.g. cifar_resnet20; or "own/..." for one that `build` is given the maker of."""
    dataset: str = "digits"
    """Name of the data set: digits, fashion_mnist, cifar10, cifar100, svhn_cropped."""
    epochs: int = 10
    """Passes over the training images."""
    steps: int = 0
    """Training steps instead of epochs; 0 means count by epochs."""
    batch_size: int = 128
    """Images of one step, over all devices."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    optimizer: Literal["sgd", "lars", "lamb", "adamw", "muon"] = "sgd"
    """Which optimizer."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """Cosine or straight to zero, divided by ten at each milestone, or constant."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where the step schedule drops, as fractions of the training."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises linearly from zero."""
    momentum: float = 0.9
    """Momentum of SGD, LARS and Muon."""
    nesterov: bool = True
    """Nesterov's momentum (false: the classical one)."""
    weight_decay: float = 1e-4
    """L2 penalty, added to the gradient (LAMB, AdamW and Muon: to the update)."""
    decay_all: bool = False
    """Decay normalisation parameters and biases too, as the papers do."""
    augment: bool = True
    """Random crop, and flip where that keeps the class."""
    image_size: int = 0
    """Pixels a side to which images are resized on the device; 0 means as the data set has them."""
    train_sizes: tuple[int, ...] = ()
    """Progressive resizing: the image sizes of equal parts of the training, in place of image_size; the last is evaluated."""
    eval_size: int = 0
    """Pixels a side of the images that are evaluated (FixRes, arXiv:1906.06423); 0 means as in training."""
    eval_crop: float = 0.875
    """Share of the shorter side that is cut from the centre to be evaluated, of images stored in their own sizes."""
    crop_area: float = 0.08
    """Least share of the area of an image stored in its own size that a crop for training takes (GoogLeNet, section 6)."""
    shorter_sides: tuple[int, ...] = ()
    """Instead of crops by area: scale the shorter side to so many pixels, or drawn from the first to the last, and cut a square."""
    repeats: int = 1
    """Crops of each image, one after the other in the order; an epoch has 1 / repeats of the images then (arXiv:1902.05509)."""
    on_damaged: Literal["halt", "skip"] = "halt"
    """At an image that cannot be decoded: halt, or put another in its place."""
    damage_budget: int = 0
    """Images that may be so replaced in an epoch before training halts after all."""
    auxiliary_weight: float = 0.3
    """What the loss of each auxiliary head adds to the classifier's; 0 leaves the heads out."""
    label_smoothing: float = 0.0
    """Share of the target that all classes have in common."""
    mixup: float = 0.0
    """Strength of mixup (alpha of its beta distribution); 0: none."""
    cutmix: float = 0.0
    """Strength of CutMix; with mixup on too, each has half of the batches."""
    accumulate: int = 1
    """Parts in which a batch is computed, one after the other; batch norm has the statistics of a part."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, statistics, loss and reductions are float32 in both."""
    remat: Literal["none", "convolutions", "blocks"] = "none"
    """What the backward pass keeps: all, outputs of convolutions, or of blocks; the rest is computed again."""
    ema: float = 0.0
    """Decay of averages of parameters and statistics a step, which are evaluated in their place; 0: none."""
    bn_scope: Literal["global", "replica"] | int = "global"
    """Over which images batch norm has its statistics: the whole batch, a device's share, or ghost batches of so many."""
    on_bad: Literal["halt", "skip", "rollback"] = "halt"
    """After a step with numbers that are not finite: halt, leave it out, or go back to a checkpoint and leave it out then."""
    skip_budget: int = 10
    """Steps that may be left out before training halts after all."""
    spike_sigmas: float = 0.0
    """Deviations above the running mean from which a loss or gradient norm makes a step bad too; 0: never."""
    width: int = 0
    """Filters of the first stage; 0 means the paper's."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.model.startswith(OWN):
            model_info(self.model)
        dataset_info(self.dataset)
        require(1 <= self.epochs <= MOST_EPOCHS, "epochs", self.epochs, f"1 to {MOST_EPOCHS}")
        require(0 <= self.steps <= MOST_STEPS, "steps", self.steps, f"0 (count by epochs) to {MOST_STEPS}")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        require(0 < self.learning_rate < 1e4, "learning_rate", self.learning_rate, "above 0, below 10000")
        increasing = all(a < b for a, b in itertools.pairwise((0.0, *self.milestones, 1.0)))  # comparisons with NaN are false
        require(increasing, "milestones", self.milestones, "increasing fractions between 0 and 1")
        require(0 <= self.warmup_epochs < float("inf"), "warmup_epochs", self.warmup_epochs, "0 or more")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "0 up to, not including, 1")
        require(0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "0 up to, not including, 1")
        require(self.image_size >= 0, "image_size", self.image_size, "0 (the data set's) or more")
        require(all(size >= 1 for size in self.train_sizes), "train_sizes", self.train_sizes, "sizes of 1 or more")
        require(self.eval_size >= 0, "eval_size", self.eval_size, "0 (as in training) or more")
        require(0 < self.eval_crop <= 1, "eval_crop", self.eval_crop, "above 0, up to 1")
        require(0 < self.crop_area <= 1, "crop_area", self.crop_area, "above 0, up to 1")
        rising = list(self.shorter_sides) == sorted(self.shorter_sides) and min(self.shorter_sides, default=1) >= 1
        require(rising and len(self.shorter_sides) <= 2, "shorter_sides", self.shorter_sides, "none, one, or the least and most")
        require(1 <= self.repeats <= 100, "repeats", self.repeats, "1 to 100")
        require(self.damage_budget >= 0, "damage_budget", self.damage_budget, "0 or more")
        require(0 <= self.auxiliary_weight < 1e3, "auxiliary_weight", self.auxiliary_weight, "0 (no heads) up to 1000")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 up to, not including, 1")
        require(0 <= self.mixup < 1e3, "mixup", self.mixup, "0 (none) up to 1000")
        require(0 <= self.cutmix < 1e3, "cutmix", self.cutmix, "0 (none) up to 1000")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more")
        require(0 <= self.ema < 1, "ema", self.ema, "0 (none) up to, not including, 1")
        require(isinstance(self.bn_scope, str) or self.bn_scope >= 1, "bn_scope", self.bn_scope, "'global', 'replica', 1 or more")
        require(0 <= self.skip_budget <= MOST_SKIPS, "skip_budget", self.skip_budget, f"0 to {MOST_SKIPS}")
        require(0 <= self.spike_sigmas < 1e3, "spike_sigmas", self.spike_sigmas, "0 (never) up to 1000")
        require(self.width >= 0, "width", self.width, "0 (the paper's) or more")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")

    @property
    def policy(self) -> Policy:
        """What is a bad step, and what follows from it."""
        return Policy(self.on_bad, self.skip_budget, self.spike_sigmas)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training images."""
        size = dataset_info(self.dataset).train_size
        require(self.batch_size <= size, "batch_size", self.batch_size, f"1 to {size} (the training images of {self.dataset})")
        return size // self.batch_size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that the network sees, at the end of its training."""
        height, width, channels = dataset_info(self.dataset).shape
        size = self.train_sizes[-1] if self.train_sizes else self.image_size
        return (size or height, size or width, channels)

    @property
    def eval_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that are evaluated."""
        height, width, channels = self.input_shape
        return (self.eval_size or height, self.eval_size or width, channels)

    def shape_at(self, step: int) -> tuple[int, int, int]:
        """Height, width and channels of the images of training step `step` (from 0)."""
        parts = len(self.train_sizes)
        if not parts:
            return self.input_shape
        size = self.train_sizes[min(step * parts // self.total_steps, parts - 1)]
        return (size, size, self.input_shape[2])

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        total = self.steps or self.epochs * self.steps_per_epoch
        require(total <= MOST_STEPS, "epochs", self.epochs, f"at most {MOST_STEPS} steps in all, here {total}")
        return total


def claim_directory(out: Path, config: Any) -> None:
    """Make `out` the directory of this configuration (a dataclass: of a run, or of a study), or see that it is already.

    Raises InputError when it belongs to another configuration (naming each field), cannot be read, or cannot be written.
    """
    path = out / "config.json"
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    if path.exists():
        _compare(path, mine, _defaults(config))
        return
    write_text(path, json.dumps(mine, indent=2) + "\n")


def _defaults(config: Any) -> dict[str, Any]:
    """What fields that came after a run was made had in it."""
    return {field.name: field.default for field in dataclasses.fields(config) if field.default is not dataclasses.MISSING}


def _compare(path: Path, mine: dict[str, Any], defaults: dict[str, Any]) -> None:
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise TypeError("not a table of fields")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a configuration ({type(error).__name__}); choose another --out") from error
    stored = json.loads(json.dumps(defaults)) | stored
    fields = sorted(set(mine) | set(stored))
    changed = [f"{f} is {mine.get(f)!r}, there {stored.get(f)!r}" for f in fields if mine.get(f) != stored.get(f)]
    if changed:
        raise InputError(f"{path.parent} holds a run of another configuration: {'; '.join(changed)}; choose another --out")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, synced, making its folder; raises InputError when it is not writable or full."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()  # it would keep a full disk full
        raise InputError(f"cannot write {path}: {error.strerror}; free or choose another --out") from error
