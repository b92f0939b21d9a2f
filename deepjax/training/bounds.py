"""What values a configuration's fields may have: one line each, with the words of the error."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from deepjax.errors import require
from deepjax.training.step.guard import MAX_SKIPS

MAX_EPOCHS, MOST_STEPS = 1_000_000, 1_000_000_000  # the step is an int32

_Rule = tuple[
    Callable[[Any], bool], str
]  # comparisons with NaN are false, and so every rule refuses it


def _from(least: float, below: float = float("inf"), words: str = "") -> _Rule:
    return (lambda value: least <= value < below), words or f"{least} or more"


def _share(words: str) -> _Rule:
    return (lambda value: 0 < value <= 1), words


_RULES: dict[str, _Rule] = {
    "epochs": (lambda value: 1 <= value <= MAX_EPOCHS, f"1 to {MAX_EPOCHS}"),
    "steps": (lambda value: 0 <= value <= MOST_STEPS, f"0 (count by epochs) to {MOST_STEPS}"),
    "batch_size": _from(1),
    "learning_rate": (lambda value: 0 < value < 1e4, "above 0, below 10000"),
    "milestones": (
        lambda value: all(a < b for a, b in pairwise((0.0, *value, 1.0))),
        "increasing fractions between 0 and 1",
    ),
    "decay_rate": _share("above 0, up to 1"),
    "decay_epochs": (lambda value: 0 < value < float("inf"), "above 0"),
    "warmup_epochs": _from(0),
    "momentum": _from(0, 1, "0 up to, not including, 1"),
    "weight_decay": _from(0, 1, "0 up to, not including, 1"),
    "grad_clip_norm": _from(0, words="0 (never) or more"),
    "pca_lighting_std": _from(0, 10, "0 (none) up to 10"),
    "augment_operations": (lambda value: 1 <= value <= 10, "1 to 10"),
    "augment_magnitude": (lambda value: 0 <= value <= 10, "0 to 10"),
    "random_erasing": (lambda value: 0 <= value <= 1, "0 (none) to 1"),
    "image_size": _from(0, words="0 (the data set's) or more"),
    "progressive_sizes": (lambda value: all(size >= 1 for size in value), "sizes of 1 or more"),
    "eval_size": _from(0, words="0 (as in training) or more"),
    "eval_crop": (lambda value: 0.1 <= value <= 1, "0.1 to 1"),
    "min_crop_area": _share("above 0, up to 1"),
    "resize_shorter_side": (
        lambda value: (
            len(value) <= 2 and list(value) == sorted(value) and min(value, default=1) >= 1
        ),
        "none, one, or the least and most",
    ),
    "repeated_augmentation": (lambda value: 1 <= value <= 100, "1 to 100"),
    "max_decode_errors": _from(0),
    "auxiliary_weight": _from(0, 1e3, "0 (no heads) up to 1000"),
    "label_smoothing": _from(0, 1, "0 up to, not including, 1"),
    "target_threshold": _from(0, 1, "0 (none) up to, not including, 1"),
    "mixup": _from(0, 1e3, "0 (none) up to 1000"),
    "cutmix": _from(0, 1e3, "0 (none) up to 1000"),
    "drop_path": _from(0, 1, "0 (none) up to, not including, 1"),
    "grad_accum_steps": _from(1),
    "ema_decay": _from(0, 1, "0 (none) up to, not including, 1"),
    "bn_scope": (
        lambda value: isinstance(value, str) or value >= 1,
        "'global', 'replica', 1 or more",
    ),
    "max_skipped_steps": (lambda value: 0 <= value <= MAX_SKIPS, f"0 to {MAX_SKIPS}"),
    "spike_sigmas": _from(0, 1e3, "0 (never) up to 1000"),
    "width": _from(0, words="0 (the paper's) or more"),
    "seed": _from(0, 2**32, "0 to 4294967295"),
}


def check_bounds(config: Any) -> None:
    """Raise InputError for the first field of a configuration whose value is out of its bounds."""
    for field, (holds, allowed) in _RULES.items():
        given = getattr(config, field)
        require(holds(given), field, given, allowed)
