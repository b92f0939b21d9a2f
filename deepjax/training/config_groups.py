"""The groups of options inside a `TrainConfig`; each checks its own values when it is made.

A field has the name of its option: `config.data.image_size` is `--image-size`.
"""

import dataclasses
from itertools import pairwise
from typing import Literal

from deepjax.errors import require
from deepjax.training.guard_policy import MAX_SKIPS, OnNonfinite
from deepjax.training.validation import at_least, between, check_types, check_values, half_open

INFINITY = float("inf")


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """Optimizer and learning-rate schedule. Defaults: He et al. 2015, section 4.2; cosine."""

    optimizer: Literal["sgd", "lars", "lamb", "adamw", "muon", "rmsprop"] = "sgd"
    """Update rule."""
    momentum: float = 0.9
    """Momentum of SGD, LARS, Muon and RMSProp."""
    nesterov: bool = True
    """Nesterov momentum instead of classical momentum."""
    weight_decay: float = 1e-4
    """L2 penalty, added to the gradient (LAMB, AdamW, Muon: decoupled, added to the update)."""
    decay_norm_and_bias: bool = False
    """Apply weight decay to normalisation parameters and biases too, as the papers do; without it
    to all other parameters of two axes or more."""
    grad_clip_norm: float = 0.0
    """Maximum global gradient norm; larger gradients are scaled down to it. 0: no clipping."""
    schedule: Literal["cosine", "linear", "root", "step", "exponential", "constant"] = "cosine"
    """Learning-rate decay after warm-up; root: square root of the remaining fraction of steps."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Schedule step: fractions of the training at which the learning rate is divided by ten."""
    decay_rate: float = 0.94
    """Schedule exponential: factor applied to the learning rate every `decay_epochs`."""
    decay_epochs: float = 2.0
    """Schedule exponential: epochs between two decays."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up from zero."""

    def __post_init__(self) -> None:
        check_types(self)
        fraction = half_open(0, 1, "0 up to, not including, 1")
        check_values(
            self,
            milestones=(
                lambda value: all(a < b for a, b in pairwise((0.0, *value, 1.0))),
                "increasing fractions between 0 and 1",
            ),
            decay_rate=(lambda value: 0 < value <= 1, "above 0, up to 1"),
            decay_epochs=(lambda value: 0 < value < INFINITY, "above 0"),
            warmup_epochs=at_least(0),
            momentum=fraction,
            weight_decay=fraction,
            grad_clip_norm=at_least(0, "0 (never) or more"),
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sizes, crops and decoding of images."""

    image_size: int = 0
    """Pixels a side to which images are resized on the device; 0: the size of the data set."""
    progressive_sizes: tuple[int, ...] = ()
    """Progressive resizing: image sizes of equal parts of the training, instead of image_size."""
    eval_size: int = 0
    """Pixels a side in evaluation (FixRes, arXiv:1906.06423); 0: as in training."""
    eval_crop: float = 0.875
    """Photographs: fraction of the shorter side in the centre crop of evaluation."""
    eval_train_images: int = 0
    """Number of training images, the first of the split, on which the final training error is
    computed; 0: all (of photographs: as many as there are test images)."""
    min_crop_area: float = 0.08
    """Photographs: minimum fraction of the area in a training crop (GoogLeNet, section 6)."""
    resize_shorter_side: tuple[int, ...] = ()
    """Photographs: scale the shorter side to N, or to a random size from MIN to MAX, then crop a
    random square (VGG, ResNet); default: crops by area."""
    repeated_augmentation: int = 1
    """Crops of each image in an epoch of 1/N of the images (arXiv:1902.05509); 1: off."""
    resize_backend: Literal["opencv", "pillow"] = "opencv"
    """Photographs: resizing of training crops; opencv: faster, no antialiasing; pillow: with it."""
    on_decode_error: Literal["halt", "skip"] = "halt"
    """Corrupt image: halt, or use the next valid one (in evaluation: count it as an error)."""
    max_decode_errors: int = 0
    """With on_decode_error skip: different corrupt images of both splits before the run halts."""

    def __post_init__(self) -> None:
        check_types(self)
        check_values(
            self,
            image_size=at_least(0, "0 (the data set's) or more"),
            progressive_sizes=(
                lambda value: all(size >= 1 for size in value),
                "sizes of 1 or more",
            ),
            eval_size=at_least(0, "0 (as in training) or more"),
            eval_crop=between(0.1, 1),
            eval_train_images=at_least(0, "0 (all) or more"),
            min_crop_area=(lambda value: 0 < value <= 1, "above 0, up to 1"),
            resize_shorter_side=(_is_range, "none, one, or the least and most"),
            repeated_augmentation=between(1, 100),
            max_decode_errors=at_least(0),
        )


def _is_range(sides: tuple[int, ...]) -> bool:
    return len(sides) <= 2 and list(sides) == sorted(sides) and min(sides, default=1) >= 1


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Augmentation of training images, on the device."""

    augment: bool = True
    """Random crop, and horizontal flip where it keeps the class."""
    flip: bool = True
    """Flip images at random, unless the data set says that this changes the class; your own images
    do not say so."""
    pca_lighting_std: float = 0.0
    """Standard deviation of AlexNet's PCA colour shift; 0: off."""
    auto_augment: Literal["none", "rand", "trivial"] = "none"
    """RandAugment as in timm, or TrivialAugment as in torchvision."""
    augment_operations: int = 2
    """RandAugment: operations per image, each applied with probability 0.5."""
    augment_magnitude: float = 9.0
    """RandAugment: mean magnitude, 0 to 10; each operation samples its own, with std 0.5."""
    random_erasing: float = 0.0
    """Probability that a box of an image is erased (arXiv:1708.04896)."""
    mixup: float = 0.0
    """Mixup alpha (arXiv:1710.09412); 0: off."""
    cutmix: float = 0.0
    """CutMix alpha (arXiv:1905.04899); 0: off. With mixup too, each gets half of the batches."""

    def __post_init__(self) -> None:
        check_types(self)
        alpha = half_open(0, 1e3, "0 (none) up to 1000")
        check_values(
            self,
            pca_lighting_std=half_open(0, 10, "0 (none) up to 10"),
            augment_operations=between(1, 10),
            augment_magnitude=between(0, 10),
            random_erasing=between(0, 1, "0 (none) to 1"),
            mixup=alpha,
            cutmix=alpha,
        )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The training loss; evaluation always reports the softmax cross-entropy."""

    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Softmax cross-entropy, or the mean binary cross-entropy of the classes (arXiv:2110.00476)."""
    target_threshold: float = 0.0
    """Loss sigmoid: targets above it become 1, the others 0; 0: targets unchanged."""
    label_smoothing: float = 0.0
    """Fraction of the target spread evenly over all classes."""
    auxiliary_weight: float = 0.3
    """Weight of each auxiliary head's loss; 0 disables the heads."""

    def __post_init__(self) -> None:
        check_types(self)
        check_values(
            self,
            auxiliary_weight=half_open(0, 1e3, "0 (no heads) up to 1000"),
            label_smoothing=half_open(0, 1, "0 up to, not including, 1"),
            target_threshold=half_open(0, 1, "0 (none) up to, not including, 1"),
        )
        require(
            self.loss == "sigmoid" or not self.target_threshold,
            "target_threshold",
            self.target_threshold,
            "0 with the loss 'softmax', whose targets are probabilities",
        )


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What a bad step is, and what follows from it."""

    on_nonfinite: OnNonfinite = "halt"
    """After a step with NaN or infinity: halt, skip it, or restore a checkpoint and skip it."""
    max_skipped_steps: int = 10
    """Skipped steps before training halts after all."""
    spike_sigmas: float = 0.0
    """Skip spikes: a loss or gradient norm above its running mean by this many std; 0: off."""

    def __post_init__(self) -> None:
        check_types(self)
        check_values(
            self,
            max_skipped_steps=between(0, MAX_SKIPS),
            spike_sigmas=half_open(0, 1e3, "0 (never) up to 1000"),
        )


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """A training that starts from weights: fine-tuning, or a linear probe."""

    weights: str = ""
    """Start from these weights of the network: a file (.safetensors, .npz, .pth), a folder, a
    repository such as timm/resnet50.a1_in1k, or a run directory. A classifier for other classes
    is newly initialised."""
    weights_entry: str = ""
    """Which network of a file that holds several, by the prefix of its tensors, e.g. model_ema."""
    weights_known: str = ""
    """Which public weights a file holds, for the mean and std that they expect: 'torchvision
    IMAGENET1K_V1' (`deepjax models NAME` lists them); 'none': those of the data set."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by patterns of their paths: 'stem*' 'stage1*'; all but the
    classifier: '!classifier'."""
    rate_factors: tuple[str, ...] = ()
    """Factors of the learning rate by patterns of paths: 'classifier=10' 'stage1*=0.1'."""
    freeze_batch_norm: bool = False
    """Batch norms use and keep their running averages in training."""

    def __post_init__(self) -> None:
        check_types(self)
        self.factors()
        for name, allowed in (("weights_entry", "a prefix"), ("weights_known", "a name")):
            given = getattr(self, name)
            require(not given or bool(self.weights), name, given, f"{allowed} only with --weights")

    def factors(self) -> dict[str, float]:
        """Factor by pattern. Raises InputError for other text than PATTERN=NUMBER."""
        found: dict[str, float] = {}
        for text in self.rate_factors:
            pattern, _, number = text.rpartition("=")
            try:
                factor = float(number)
            except ValueError:
                factor = -1.0
            valid = bool(pattern) and 0 <= factor < INFINITY and pattern not in found
            allowed = "PATTERN=FACTOR with a factor of 0 or more, each pattern once"
            require(valid, "rate_factors", text, allowed)
            found[pattern] = factor
        return found
