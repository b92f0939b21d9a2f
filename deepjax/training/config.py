"""The configuration of one training run: frozen, checked when made, stored as config.json and compared on resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from deepjax.data import dataset_info
from deepjax.errors import InputError, require
from deepjax.io import write_text
from deepjax.models import model_info
from deepjax.training.bounds import MOST_STEPS, check_bounds
from deepjax.training.step.guard import Policy
from deepjax.training.validation import check_types

RESULT_FILES = (
    "metrics.jsonl",
    "checkpoints",
    "measured",
    "result.json",
)  # of a run, a study or an evaluation
CUSTOM_NETWORK_PREFIX = (
    "own/"  # a name that starts so is of a network that the caller makes, not of the registry
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is computed. The defaults are those of He et al. 2015 (section 4.2) but for the length, warm-up and decay mask."""

    model: str
    """Name of the network, e.g. cifar_resnet20; or "own/..." for one that `build` is given the maker of."""
    dataset: str = "digits"
    """Name of the data set: digits, fashion_mnist, cifar10, cifar100, svhn_cropped, imagenet2012, imagenette/160px-v2, /320px-v2,
    /full-size-v2, or one that `register` made known."""
    epochs: int = 10
    """Passes over the training images."""
    steps: int = 0
    """Training steps instead of epochs; 0 means count by epochs."""
    batch_size: int = 128
    """Images of one step, over all devices."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    optimizer: Literal["sgd", "lars", "lamb", "adamw", "muon", "rmsprop"] = "sgd"
    """Which optimizer."""
    schedule: Literal["cosine", "linear", "root", "step", "exponential", "constant"] = "cosine"
    """To zero: as a cosine, straight, or as the square root of what is left; by steps, or constant."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where the schedule "step" divides by ten, as fractions of the training."""
    decay_rate: float = 0.94
    """What the schedule "exponential" multiplies by, each time."""
    decay_epochs: float = 2.0
    """Epochs from one such time to the next."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises linearly from zero."""
    momentum: float = 0.9
    """Momentum of SGD, LARS, Muon and RMSProp."""
    nesterov: bool = True
    """Nesterov's momentum (false: the classical one)."""
    weight_decay: float = 1e-4
    """L2 penalty, added to the gradient (LAMB, AdamW and Muon: to the update)."""
    decay_norm_and_bias: bool = False
    """Decay normalisation parameters and biases too, as the papers do."""
    grad_clip_norm: float = 0.0
    """Norm of the whole gradient from which it is scaled down to that norm; 0: never."""
    augment: bool = True
    """Random crop, and flip where that keeps the class."""
    pca_lighting_std: float = 0.0
    """Deviation of AlexNet's shift of the colours along their principal components; 0: none."""
    auto_augment: Literal["none", "rand", "trivial"] = "none"
    """Random operations on images: RandAugment as timm has it, or TrivialAugment (one operation) as torchvision has it."""
    augment_operations: int = 2
    """Operations of RandAugment on an image, each left out with probability one half."""
    augment_magnitude: float = 9.0
    """Strength of RandAugment's operations, 0 to 10; each draws its own around it, with deviation 0.5."""
    random_erasing: float = 0.0
    """Probability that a box of an image is erased (arXiv:1708.04896)."""
    image_size: int = 0
    """Pixels a side to which images are resized on the device; 0 means as the data set has them."""
    progressive_sizes: tuple[int, ...] = ()
    """Progressive resizing: the image sizes of equal parts of the training, in place of image_size; the last is evaluated."""
    eval_size: int = 0
    """Pixels a side of the images that are evaluated (FixRes, arXiv:1906.06423); 0 means as in training."""
    eval_crop: float = 0.875
    """Share of the shorter side that is cut from the centre to be evaluated, of images stored in their own sizes."""
    min_crop_area: float = 0.08
    """Least share of the area of an image stored in its own size that a crop for training takes (GoogLeNet, section 6)."""
    resize_shorter_side: tuple[int, ...] = ()
    """Instead of crops by area: scale the shorter side to so many pixels, or drawn from the first to the last, and cut a square."""
    repeated_augmentation: int = 1
    """Crops of each image, one after the other in the order; an epoch has 1 / repeats of the images then (arXiv:1902.05509)."""
    resize_backend: Literal["opencv", "pillow"] = "opencv"
    """How crops for training are scaled: as fast as may be, without smoothing, or as Pillow and torchvision do it."""
    on_decode_error: Literal["halt", "skip"] = "halt"
    """At an image that cannot be decoded: halt, or put the next sound one in its place (in evaluation: count an error)."""
    max_decode_errors: int = 0
    """Different images of both splits that may be damaged in the whole run before it halts after all."""
    auxiliary_weight: float = 0.3
    """What the loss of each auxiliary head adds to the classifier's; 0 leaves the heads out."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy over the classes, or the mean of each class's own binary one (arXiv:2110.00476); evaluation has the first."""
    target_threshold: float = 0.0
    """With "sigmoid": targets above it count as 1 and the others as 0; 0: targets as they are."""
    label_smoothing: float = 0.0
    """Share of the target that all classes have in common."""
    mixup: float = 0.0
    """Strength of mixup (alpha of its beta distribution); 0: none."""
    cutmix: float = 0.0
    """Strength of CutMix; with mixup on too, each has half of the batches."""
    drop_path: float = 0.0
    """Stochastic depth: share of images that the last residual branch leaves out, rising in proportion from the first."""
    grad_accum_steps: int = 1
    """Parts in which a batch is computed, one after the other; batch norm has the statistics of a part."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, statistics, loss and reductions are float32 in both."""
    remat: Literal["none", "convolutions", "blocks"] = "none"
    """What the backward pass keeps: all, outputs of convolutions, or of blocks; the rest is computed again."""
    ema_decay: float = 0.0
    """Decay of averages of parameters and statistics a step, which are evaluated in their place; 0: none."""
    bn_scope: Literal["global", "replica"] | int = "global"
    """Over which images batch norm has its statistics: the whole batch, a device's share, or ghost batches of so many."""
    on_nonfinite: Literal["halt", "skip", "rollback"] = "halt"
    """After a step with numbers that are not finite: halt, leave it out, or go back to a checkpoint and leave it out then."""
    max_skipped_steps: int = 10
    """Steps that may be left out before training halts after all."""
    spike_sigmas: float = 0.0
    """Deviations above the running mean from which a loss or gradient norm makes a step bad too; 0: never."""
    width: int = 0
    """Filters of the first stage; 0 means the paper's."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.model.startswith(CUSTOM_NETWORK_PREFIX):
            model_info(self.model)
        check_bounds(self)
        dataset = dataset_info(self.dataset)
        require(
            len(dataset.splits) == 2,
            "dataset",
            self.dataset,
            "one with training and test images, not for one of them alone",
        )
        channels = dataset.shape[2]
        require(
            not self.pca_lighting_std or channels == 3,
            "pca_lighting_std",
            self.pca_lighting_std,
            f"0 for {self.dataset}, whose images have no colours",
        )
        binary = self.loss == "sigmoid" or not self.target_threshold
        require(
            binary,
            "target_threshold",
            self.target_threshold,
            "0 with the loss 'softmax', whose targets are shares",
        )

    @property
    def policy(self) -> Policy:
        """What is a bad step, and what follows from it."""
        return Policy(self.on_nonfinite, self.max_skipped_steps, self.spike_sigmas)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training images."""
        size = dataset_info(self.dataset).train_size
        require(
            self.batch_size <= size,
            "batch_size",
            self.batch_size,
            f"1 to {size} (the training images of {self.dataset})",
        )
        return size // self.batch_size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that the network sees, at the end of its training."""
        height, width, channels = dataset_info(self.dataset).shape
        size = self.progressive_sizes[-1] if self.progressive_sizes else self.image_size
        return (size or height, size or width, channels)

    @property
    def eval_resize(self) -> int:
        """Pixels a side to which images stored in one size are resized to be evaluated; 0: as they are."""
        return self.eval_size or (
            self.progressive_sizes[-1] if self.progressive_sizes else self.image_size
        )

    @property
    def eval_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that are evaluated."""
        height, width, channels = self.input_shape
        return (self.eval_size or height, self.eval_size or width, channels)

    def shape_at(self, step: int) -> tuple[int, int, int]:
        """Height, width and channels of the images of training step `step` (from 0)."""
        parts = len(self.progressive_sizes)
        if not parts:
            return self.input_shape
        size = self.progressive_sizes[min(step * parts // self.total_steps, parts - 1)]
        return (size, size, self.input_shape[2])

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        total = self.steps or self.epochs * self.steps_per_epoch
        require(
            total <= MOST_STEPS,
            "epochs",
            self.epochs,
            f"at most {MOST_STEPS} steps in all, here {total}",
        )
        return total


def init_run_dir(out: Path, config: Any) -> None:
    """Make `out` the directory of this configuration (a dataclass: of a run, or of a study), or see that it is already.

    Raises InputError when it belongs to another configuration (naming each field), cannot be read, or cannot be written, and when
    it holds results without a config.json, which nobody can tell the configuration of.
    """
    path = out / "config.json"
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    if path.exists():
        _compare(path, mine, _defaults(config))
        return
    left = [name for name in RESULT_FILES if (out / name).exists()]
    if left:
        raise InputError(
            f"{out} holds {left[0]} but no config.json; restore it, or choose another --output-dir"
        )
    write_text(path, json.dumps(mine, indent=2) + "\n")


def _defaults(config: Any) -> dict[str, Any]:
    """What fields that came after a run was made had in it."""
    return {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING
    }


def _compare(path: Path, mine: dict[str, Any], defaults: dict[str, Any]) -> None:
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise TypeError("not a table of fields")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as a configuration ({type(error).__name__}); choose another --output-dir"
        ) from error
    stored = json.loads(json.dumps(defaults)) | stored
    fields = sorted(set(mine) | set(stored))
    changed = [
        f"{f} is {mine.get(f)!r}, there {stored.get(f)!r}"
        for f in fields
        if mine.get(f) != stored.get(f)
    ]
    if changed:
        is_longer = {f for f in fields if mine.get(f) != stored.get(f)} <= {"epochs", "steps"}
        why = (
            " (the learning-rate schedule depends on the number of steps: a run of another length needs a new --output-dir)"
            if is_longer
            else ""
        )
        raise InputError(
            f"{path.parent} holds a run of another configuration: {'; '.join(changed)}{why}; choose another --output-dir"
        )
