"""Recipes for ImageNet, each with its source, reported accuracy and differences.

    recipe("resnet50_a3").config

Accuracies are those of the sources, as top-1 and top-5 in percent. The learning rate is not scaled
with the batch size: a run that overrides `batch_size` sets its own `learning_rate`.
"""

import dataclasses
from typing import Any

from deepjax.errors import unknown_name_error
from deepjax.training.config import TrainConfig, replace_options, train_config
from deepjax.training.recipes.recipe import Recipe, page

VGG = "Simonyan and Zisserman 2014, arXiv:1409.1556"
GOOGLENET = "Szegedy et al. 2014, arXiv:1409.4842"
INCEPTION = "Szegedy et al. 2015, arXiv:1512.00567"
RESNET = "He et al. 2015, arXiv:1512.03385"
STRIKES_BACK = "Wightman, Touvron and Jegou 2021, arXiv:2110.00476, table 2"
CAFFE = "github.com/BVLC/caffe, models/bvlc_googlenet"
SILENT = "not stated"

# SGD of the papers before 2017.
_PLAIN: dict[str, Any] = {"nesterov": False, "warmup_epochs": 0.0, "decay_norm_and_bias": True}
_DIVIDES = (
    "the learning rate is divided by ten after each quarter; "
    "in the paper when the error stops falling"
)
_NORMALISED = "pixels are divided by their standard deviation, not only centred"
_TWICE = "Caffe's biases have twice the learning rate"
_FLOAT16 = "bfloat16; in the source float16 with loss scaling"
_EACH_STEP = "the learning rate changes every step, in the source every epoch, and ends at 0"


def _imagenet(model: str, **fields: Any) -> TrainConfig:
    return train_config(model=model, dataset="imagenet2012", **fields)


def _vgg(name: str, letter: str, top1_error: float, top5_error: float, jitter: bool) -> Recipe:
    """Section 3.1 and table 3."""
    sides = (256, 512) if jitter else (256,)
    fields: dict[str, Any] = {
        "weight_decay": 5e-4,
        "pca_lighting_std": 0.1,
        "resize_shorter_side": sides,
    } | _PLAIN
    steps = {"schedule": "step", "milestones": (0.25, 0.5, 0.75)}
    config = _imagenet(name, epochs=74, batch_size=256, learning_rate=0.01, **steps, **fields)
    differs = (
        _DIVIDES,
        "Glorot initialisation, which section 3.1 recommends in the end",
        _NORMALISED,
    )
    if jitter:
        differs += (
            "scale jitter from the first step; the paper fine-tunes a network trained at 384",
        )
    protocol = f"dense, shorter side {384 if jitter else 256}"
    top = round(100 - top1_error, 2), round(100 - top5_error, 2)
    return Recipe(
        name,
        config,
        f"{VGG}, section 3.1 and table 3, {letter}",
        *top,
        protocol,
        "2 to 3 weeks on 4 Titan Black",
        differs,
    )


def _resnet(depth: int, model: str, top1_error: float, top5_error: float | None) -> Recipe:
    """Section 3.4, tables 2 and 3: 600,000 steps of 256 images are 120 epochs."""
    steps = {"schedule": "step", "milestones": (0.25, 0.5, 0.75)}
    config = _imagenet(
        model,
        epochs=120,
        batch_size=256,
        resize_shorter_side=(256, 480),
        pca_lighting_std=0.1,
        **steps,
        **_PLAIN,
    )
    top = round(100 - top1_error, 2), None if top5_error is None else round(100 - top5_error, 2)
    where = f"{RESNET}, section 3.4 and table {2 if depth == 18 else 3}"
    return Recipe(
        f"resnet{depth}", config, where, *top, "10 crops", SILENT, (_DIVIDES, _NORMALISED)
    )


def _googlenet() -> tuple[Recipe, Recipe]:
    """Section 6, and Caffe's two solvers for what the paper does not say."""
    fields: dict[str, Any] = (
        {"batch_size": 32, "learning_rate": 0.01, "weight_decay": 2e-4}
        | _PLAIN
        | {"decay_norm_and_bias": False}
    )
    every = {"schedule": "exponential", "decay_rate": 0.96, "decay_epochs": 8.0}
    paper = Recipe(
        "googlenet",
        _imagenet("googlenet", epochs=250, ema_decay=0.9999, **every, **fields),
        f"{GOOGLENET}, section 6 and table 3",
        None,
        89.93,
        "1 crop",
        "under a week on a few GPUs, as the paper estimates",
        (
            "batch size, learning rate, weight decay and length from Caffe's solver.prototxt",
            "synchronous; in the paper asynchronous replicas",
            "moving averages of decay 0.9999; in the paper Polyak's",
            "no photometric distortions",
            _TWICE,
            _NORMALISED,
        ),
    )
    quick = Recipe(
        "googlenet_quick",
        _imagenet("googlenet", epochs=60, schedule="root", resize_shorter_side=(256,), **fields),
        f"{CAFFE}: quick_solver.prototxt and readme.md",
        68.7,
        88.9,
        "1 crop",
        SILENT,
        ("images keep their aspect ratio; Caffe resizes them to 256 x 256", _TWICE, _NORMALISED),
    )
    return paper, quick


def _inception_v3() -> Recipe:
    """Section 8 and table 3."""
    fields: dict[str, Any] = {
        "optimizer": "rmsprop",
        "grad_clip_norm": 2.0,
        "label_smoothing": 0.1,
        "ema_decay": 0.9999,
        "auxiliary_weight": 0.4,
    }
    rates = {
        "learning_rate": 0.045,
        "schedule": "exponential",
        "decay_rate": 0.94,
        "decay_epochs": 2.0,
    }
    sizes = {"image_size": 299, "batch_size": 1600, "epochs": 100}
    return Recipe(
        "inception_v3",
        _imagenet("inception_v3", weight_decay=4e-5, **sizes, **rates, **fields, **_PLAIN),
        f"{INCEPTION}, section 8 and table 3",
        78.8,
        94.4,
        "1 crop, without the 1,762 blacklisted images",
        SILENT,
        (
            "one batch for 50 replicas of 32 images",
            "momentum, weight decay, decay of averages and weight of the head from TF-Slim",
            "no photometric distortions",
        ),
    )


def _torchvision() -> Recipe:
    """Issue 3995 with pull request 5201.

    Decay of its averages in 32 steps: 1 - (1 - 0.99998) 8 * 128 * 32 / 600.
    """
    fields: dict[str, Any] = {
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
        "random_erasing": 0.1,
        "repeated_augmentation": 4,
    }
    sizes = {
        "image_size": 176,
        "eval_size": 224,
        "eval_crop": 224 / 232,
        "batch_size": 1024,
        "epochs": 600,
    }
    rates = {"learning_rate": 0.5, "warmup_epochs": 5.0, "weight_decay": 2e-5, "nesterov": False}
    average = (1 - 2e-5 * 8 * 128 * 32 / 600) ** (1 / 32)
    return Recipe(
        "resnet50_tv2",
        _imagenet(
            "resnet50", auto_augment="trivial", ema_decay=average, **sizes, **rates, **fields
        ),
        "github.com/pytorch/vision, issue 3995 and pull requests 5051, 5084 and 5201, "
        "weights IMAGENET1K_V2",
        80.858,
        95.434,
        "1 crop, shorter side 232",
        SILENT,
        (
            _EACH_STEP,
            "averages are updated every step from the first on, in the source every 32 steps",
            "no weight decay of the classifier's bias",
        ),
    )


def _strikes_back(
    name: str, top1: float, top5: float, cost: str, epochs: int, rate: float, **fields: Any
) -> Recipe:
    whole = {
        "optimizer": "lamb",
        "grad_clip_norm": 1.0,
        "loss": "sigmoid",
        "cutmix": 1.0,
        "auto_augment": "rand",
        "warmup_epochs": 5.0,
    }
    sizes = {
        "batch_size": 2048,
        "epochs": epochs,
        "eval_size": 224,
        "eval_crop": 224 / 235,
        "precision": "bfloat16",
    }
    config = _imagenet("resnet50", learning_rate=rate, **whole, **sizes, **fields)
    differs = [
        _FLOAT16,
        _EACH_STEP,
        "crops (in evaluation too) and RandAugment are bilinear, in the source bicubic",
        "gradient clipping as in timm's LAMB",
    ]
    counted = "targets above 0.2 become 1, as in published commands for timm"
    kept = (
        "targets stay fractions as in mmpretrain and PaddleClas (timm's own setting was not found)"
    )
    differs.append(counted if config.objective.target_threshold else kept)
    if config.drop_path:
        differs.append(
            "branch l of L is dropped with probability 0.05 l / L, in timm 0.05 (l - 1) / (L - 1)"
        )
    protocol = "1 crop of 95 %, weights re-evaluated by timm"
    return Recipe(
        f"resnet50_{name}",
        config,
        f"{STRIKES_BACK}, {name.upper()}",
        top1,
        top5,
        protocol,
        cost,
        tuple(differs),
    )


def _fast(epochs: int, at_160: int, top1: float, top5: float, minutes: float) -> Recipe:
    """rn50_configs/rn50_*_epochs.yaml: `at_160` epochs at 160 pixels, the rest at 192.

    That is the source's ramp, rounded to a multiple of 32.

    Its batch_size, 512, is that of each of 8 processes.
    """
    sizes = {
        "progressive_sizes": (160,) * at_160 + (192,) * (epochs - at_160),
        "eval_size": 256,
        "batch_size": 4096,
    }
    rates = {
        "learning_rate": 1.7,
        "schedule": "linear",
        "warmup_epochs": 2.0,
        "weight_decay": 1e-4,
        "nesterov": False,
    }
    config = _imagenet(
        "resnet50", epochs=epochs, label_smoothing=0.1, precision="bfloat16", **sizes, **rates
    )
    differs = (
        "no blur before strided convolutions",
        "no averaging over mirrored images in evaluation",
        _FLOAT16,
        "no weight decay of the classifier's bias",
    )
    source = f"github.com/libffcv/ffcv-imagenet, rn50_configs/rn50_{epochs}_epochs.yaml and README"
    return Recipe(
        f"resnet50_{epochs}",
        config,
        source,
        top1,
        top5,
        "1 crop and its mirror",
        f"{minutes} min on 8 A100",
        differs,
    )


_RECIPES = {
    recipe.name: recipe
    for recipe in (
        _vgg("vgg11", "A", 29.6, 10.4, False),
        _vgg("vgg11_lrn", "A-LRN", 29.7, 10.5, False),
        _vgg("vgg13", "B", 28.7, 9.9, False),
        _vgg("vgg16_c", "C", 27.3, 8.8, True),
        _vgg("vgg16", "D", 25.6, 8.1, True),
        _vgg("vgg19", "E", 25.5, 8.0, True),
        *_googlenet(),
        _inception_v3(),
        _resnet(18, "resnet18_a", 27.88, None),
        _resnet(34, "resnet34", 24.52, 7.46),
        _resnet(50, "resnet50_v1", 22.85, 6.71),
        _resnet(101, "resnet101_v1", 21.75, 6.05),
        _resnet(152, "resnet152_v1", 21.43, 5.71),
        _torchvision(),
        _strikes_back(
            "a1",
            80.382,
            94.598,
            "4.6 days on 4 V100",
            600,
            5e-3,
            weight_decay=0.01,
            mixup=0.2,
            augment_magnitude=7.0,
            label_smoothing=0.1,
            repeated_augmentation=3,
            drop_path=0.05,
        ),
        _strikes_back(
            "a2",
            79.828,
            94.56,
            SILENT,
            300,
            5e-3,
            weight_decay=0.02,
            mixup=0.1,
            augment_magnitude=7.0,
            target_threshold=0.2,
            repeated_augmentation=3,
            drop_path=0.05,
        ),
        _strikes_back(
            "a3",
            78.052,
            93.78,
            SILENT,
            100,
            8e-3,
            weight_decay=0.02,
            mixup=0.1,
            augment_magnitude=6.0,
            target_threshold=0.2,
            image_size=160,
        ),
        _fast(16, 12, 73.8, 90.8, 14.9),
        _fast(24, 19, 75.6, 92.1, 21.7),
        _fast(32, 25, 76.6, 92.7, 28.7),
        _fast(40, 32, 77.2, 93.2, 35.6),
        _fast(56, 45, 78.0, 93.7, 49.4),
        _fast(88, 71, 78.4, 94.1, 77.2),
    )
}


def list_recipes() -> list[str]:
    """The names of the recipes."""
    return list(_RECIPES)


def recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe of that name, with other values for some options.

    Raises InputError with the nearest name for an unknown recipe or option.

    >>> recipe("resnet50_a3", dataset="imagenette/160px-v2").config.optimization.optimizer
    'lamb'
    """
    if name not in _RECIPES:
        raise unknown_name_error("recipe", name, _RECIPES)
    found = _RECIPES[name]
    return (
        dataclasses.replace(found, config=replace_options(found.config, **overrides))
        if overrides
        else found
    )


def recipes_page() -> str:
    """All recipes in Markdown: docs/results/recipes.md."""
    return page(_RECIPES.values())
