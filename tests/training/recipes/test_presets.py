"""Recipes for ImageNet: rates by the papers' closed forms, numbers by their tables, and steps."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.cli.train import parsed, recipe_of
from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.training import TrainConfig
from deepjax.training.build import step_options
from deepjax.training.config import replace_options
from deepjax.training.network import model_from
from deepjax.training.recipes.imagenet import list_recipes, recipe, recipes_page
from deepjax.training.recipes.recipe import NOT_MEASURED
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_train_step

ROOT = Path(__file__).parents[3]
# Batch size -> full batches in 1,281,167 images.
EPOCH = {32: 40036, 256: 5004, 1024: 1251, 1600: 800, 2048: 625, 4096: 312}


def rate(name: str, epoch: float) -> float:
    """The learning rate of the step that begins at so many epochs."""
    config = recipe(name).config
    return float(
        config.learning_rate * make_schedule(config)(round(epoch * config.steps_per_epoch))
    )


HEADS = {"googlenet": ("4a", "4d"), "inception_v3": ("6e",)}  # by network
# Slow to trace; others are of the same kind.
LONG = ("inception_v3", "resnet101", "resnet152", "resnet50_a2")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in list_recipes()]
)
def test_a_step_of_each_recipe_has_the_shapes_of_its_state(name):
    """Traced only: the network accepts the recipe's images, and the optimizer its parameters."""
    config = recipe(name).config
    assert EPOCH[config.batch_size] == config.steps_per_epoch
    same = {
        "batch_size": 8,
        "epochs": 1,
        "warmup_epochs": 0.0,
        "progressive_sizes": config.data.progressive_sizes[:1],
        "augment_magnitude": 7.0,
    }
    after, before = traced(replace_options(config, **same))
    assert after == before


@functools.cache
def traced(config):
    """Shapes and types of the state after a step, and before it."""
    model, optimizer, dataset = (
        model_from(config),
        make_optimizer(config),
        dataset_info(config.dataset),
    )
    step = make_train_step(model, optimizer, make_schedule(config), dataset, step_options(config))
    heads = HEADS.get(config.model, ())
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its step count with its rates
        state = jax.eval_shape(
            lambda: init_state(
                model, optimizer, config.input_shape, 0.1, 0, heads, config.ema_decay > 0
            )
        )
        batch = {
            "image": jax.ShapeDtypeStruct((8, *config.shape_at(0)), jnp.uint8),
            "label": jax.ShapeDtypeStruct((8,), jnp.int32),
        }
        after, _ = jax.eval_shape(step, state, batch)
    return [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), of) for of in (after, state)]


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        # Three times by ten in 74 epochs (section 3.1).
        ("vgg16", {0: 1e-2, 18: 1e-2, 19: 1e-3, 38: 1e-4, 73: 1e-5}),
        ("resnet50", {0: 0.1, 29.99: 0.1, 30: 0.01, 60: 1e-3, 119: 1e-4}),
        # 4 % every 8 epochs (section 6).
        ("googlenet", {0: 0.01, 7.99: 0.01, 8: 0.0096, 16: 0.009216, 240: 0.01 * 0.96**30}),
        # Caffe's poly, 0.01 (1 - t / T) ** 0.5.
        ("googlenet_quick", {0: 0.01, 30: 0.01 * 0.5**0.5, 45: 0.005}),
        # 0.94 every two epochs (section 8).
        ("inception_v3", {0: 0.045, 1.99: 0.045, 2: 0.0423, 50: 0.045 * 0.94**25}),
        ("resnet50_tv2", {2.5: 0.25, 5: 0.5, 302.5: 0.25, 600: 0.0}),
        ("resnet50_a3", {2.5: 4e-3, 5: 8e-3, 52.5: 4e-3, 100: 0.0}),
        # FFCV's get_cyclic_lr: up to epoch 2, then straight to 0.
        ("resnet50_16", {1: 0.85, 2: 1.7, 9: 0.85, 16: 0.0}),
        ("resnet50_88", {2: 1.7, 45: 0.85, 88: 0.0}),
    ],
)
def test_rates_are_those_of_the_source(name, rates):
    np.testing.assert_allclose(
        [rate(name, epoch) for epoch in rates], list(rates.values()), rtol=4e-3, atol=1e-8
    )


def test_length_of_the_papers_in_steps():
    """VGG: 370K iterations, 74 epochs (section 3.1). ResNet: 60 x 10^4 (section 3.4).

    Caffe: 10,000,000 and 2,400,000.
    """
    steps = {
        "vgg16": 370_000,
        "resnet152": 600_000,
        "googlenet": 10_000_000,
        "googlenet_quick": 2_400_000,
    }
    for name, expected in steps.items():
        assert recipe(name).config.total_steps == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("epochs", "ramp"),
    [
        (16, (11, 13)),
        (24, (17, 20)),
        (32, (23, 27)),
        (40, (29, 34)),
        (56, (41, 48)),
        (88, (65, 76)),
    ],
)
def test_sizes_grow_as_ffcv_s(epochs, ramp):
    """Its get_resolution: the multiple of 32 nearest to a line between the epochs of the ramp."""
    config = recipe(f"resnet50_{epochs}").config
    straight = [np.interp(epoch, ramp, (160, 192)) for epoch in range(epochs)]
    expected = [
        160 if epoch <= ramp[0] else int(np.round(size / 32)) * 32
        for epoch, size in enumerate(straight)
    ]
    for epoch, size in enumerate(expected):
        first = epoch * config.steps_per_epoch
        assert (
            config.shape_at(first)
            == config.shape_at(first + config.steps_per_epoch - 1)
            == (size, size, 3)
        )


@pytest.mark.parametrize(
    ("name", "top1_error", "top5_error"),
    [
        ("vgg11", 29.6, 10.4),  # VGG, table 3
        ("vgg16", 25.6, 8.1),
        ("vgg19", 25.5, 8.0),
        ("googlenet", None, 10.07),  # GoogLeNet, table 3
        ("inception_v3", 21.2, 5.6),  # Inception-v3, table 3
        ("resnet34", 24.52, 7.46),  # ResNet, table 3, option B
        ("resnet152", 21.43, 5.71),
        ("resnet50_tv2", 19.142, 4.566),  # torchvision's IMAGENET1K_V2
        ("resnet50_a1", 19.618, 5.402),  # timm's results-imagenet.csv
    ],
)
def test_accuracy_is_the_source_s(name, top1_error, top5_error):
    stated = recipe(name)
    assert (stated.top1 and 100 - stated.top1) == (top1_error and pytest.approx(top1_error))
    assert 100 - stated.top5 == pytest.approx(top5_error)
    assert stated.measured == NOT_MEASURED


def test_averages_of_torchvision_s_recipe():
    """--model-ema-decay 0.99998, --model-ema-steps 32 (references, train.py): after 32 steps."""
    alpha = (1.0 - 0.99998) * 8 * 128 * 32 / 600
    assert recipe("resnet50_tv2").config.ema_decay ** 32 == pytest.approx(1 - alpha, rel=1e-9)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(
        InputError, match=r"recipe 'resnet50_a4' is unknown; did you mean 'resnet50_a3'\?"
    ):
        recipe("resnet50_a4")


@pytest.mark.parametrize("form", [["--recipe", "resnet50_a3"], ["--recipe=resnet50_a3"]])
def test_options_override_a_recipe_and_scale_nothing(form):
    options = parsed(
        [*form, "--batch-size", "64", "--dataset", "imagenette/160px-v2", "--output-dir", "runs/a3"]
    )
    assert (
        options.config == recipe("resnet50_a3", batch_size=64, dataset="imagenette/160px-v2").config
    )
    assert options.config.learning_rate == recipe("resnet50_a3").config.learning_rate == 8e-3


def test_without_a_recipe_options_are_as_before():
    assert recipe_of(["--model", "vgg11", "--output-dir", "x"]) == ""
    config = parsed(["--model", "cifar_resnet20", "--output-dir", "x"]).config
    assert config == TrainConfig("cifar_resnet20")


def test_the_page_has_every_recipe_and_is_current():
    text = recipes_page()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list_recipes()
    page = ROOT / "docs" / "results" / "recipes.md"
    assert page.read_text() == text, "run `deepjax train --recipe list > docs/results/recipes.md`"
