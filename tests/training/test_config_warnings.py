"""What is legal but almost certainly a mistake gives a warning before step 1; nothing else does."""

import dataclasses
import importlib
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.models.layers.norms import BatchNorm
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.arms.rates import SelectedRate
from deepjax.study.study import trained_arms
from deepjax.training import TrainConfig, compile_training, train
from deepjax.training.config import train_config
from deepjax.training.config_warnings import (
    check_batch_norm,
    shape_of_part,
    trace_forward,
    warnings_of,
)
from deepjax.training.network import model_from
from deepjax.training.recipes.imagenet import list_recipes, recipe
from experiments.run_studies import BEYOND, STUDIES


def found(config: TrainConfig, make: Any = None, labels: Any = None, devices: int = 1) -> list[str]:
    """The warnings of a configuration, without compiling anything."""
    weight = config.objective.auxiliary_weight
    forward = traced(model_from(config, make), shape_of_part(config), devices, weight)
    check_batch_norm(forward, config)
    return warnings_of(config, forward, labels, dataset_info(config.dataset).num_classes)


@cache
def traced(
    model: nn.Module, images: jax.ShapeDtypeStruct, devices: int, auxiliary_weight: float
) -> Any:
    """One trace for all configurations that differ in other things."""
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    statistics = variables.get("batch_stats", {})
    return trace_forward(model, variables["params"], statistics, images, devices, auxiliary_weight)


def config_of(model: str, **fields: Any) -> TrainConfig:
    return train_config(model, **{"width": 8} | fields)


def test_heads_without_weight_need_no_large_images():
    """The auxiliary head of Inception-v3 takes images of 299 pixels; without weight it is idle."""
    options = {"image_size": 96, "batch_size": 8}
    assert found(config_of("inception_v3", auxiliary_weight=0.0, **options)) == []
    with pytest.raises(InputError, match="96x96"):
        found(config_of("inception_v3", **options))


@pytest.mark.parametrize(
    "model, image_size, single",
    [
        ("googlenet", 0, "18 of its 20"),
        ("resnet18", 0, "11 of its 17"),
        ("googlenet", 32, ""),
        ("cifar_resnet20", 0, ""),
    ],
)
def test_images_too_small_for_the_network(model, image_size, single):
    lines = found(config_of(model, image_size=image_size))
    assert len(lines) == bool(single)
    assert not single or (
        f"images of 8x8 are too small for {model}, which was made for 224x224: {single}" in lines[0]
    )


@pytest.mark.parametrize(
    "ema, steps, kept",
    [
        (0.9999, 165, "98 %"),
        (0.99, 165, "19 %"),
        (0.98, 165, ""),
        (0.0, 165, ""),
        (0.9999, 30_000, ""),
        (0.999, 2000, "14 %"),
    ],
)
def test_averages_that_keep_the_initial_weights(ema, steps, kept):
    """An average keeps decay^steps: 0.9999^165 = 0.984, 0.99^165 = 0.190, 0.98^165 = 0.036."""
    lines = found(config_of("cifar_plain20", ema_decay=ema, steps=steps))
    assert len(lines) == bool(kept)
    assert not kept or (
        f"ema_decay is {ema:g} and there are {steps} steps" in lines[0]
        and f"still contain {kept} of the initial" in lines[0]
    )


def test_what_the_warning_of_averages_advises_is_enough():
    for ema, steps in ((0.9999, 29_956), (0.982, 165)):
        assert (
            ema**steps <= 0.0501
            and found(config_of("cifar_plain20", ema_decay=ema, steps=steps)) == []
        )


def test_classes_without_training_images():
    labels = np.array([0, 1, 2, 3, 4, 6, 8, 8], np.int32)
    assert found(config_of("cifar_plain20"), labels=labels) == [
        "3 of 10 classes have no training images: 5, 7, 9"
    ]
    assert found(config_of("cifar_plain20"), labels=np.arange(10)) == []


class Idle(nn.Module):
    """A layer without effect, one that only a compiled inner function ignores, one with effect."""

    num_classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        nn.Dense(3, name="idle")(x)
        other = nn.Dense(self.num_classes, name="ignored")(x)
        return jax.jit(lambda used, ignored: used)(
            nn.Dense(self.num_classes, name="used")(x), other
        )


def test_parameters_that_do_not_influence_the_loss():
    (line,) = found(TrainConfig("own/idle"), Idle)
    assert line == (
        "4 of 6 parameters do not influence the loss and stay as they are: "
        "idle/bias, idle/kernel, ignored/bias, ignored/kernel"
    )


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_auxiliary_heads_are_no_mistake_with_weight_0_either(weight):
    assert found(config_of("googlenet", image_size=32, auxiliary_weight=weight)) == []


class Normal(nn.Module):
    """Batch norm of a given scope over maps of one pixel."""

    num_classes: int = 10
    dtype: Any = None
    bn_scope: Any = "global"

    @nn.compact
    def __call__(self, x, train=False):
        x = x.mean((1, 2), keepdims=True)
        x = BatchNorm(train=train, bn_scope=self.bn_scope, name="norm")(
            nn.Conv(self.num_classes, (1, 1))(x)
        )
        return x[:, 0, 0]


@pytest.mark.parametrize(
    "fields, devices, is_single",
    [
        ({"batch_size": 1}, 1, True),
        ({"batch_size": 8, "grad_accum_steps": 8}, 1, True),
        ({"batch_size": 8, "grad_accum_steps": 4}, 1, False),
        ({"batch_size": 8, "bn_scope": 1}, 1, True),
        ({"batch_size": 8, "bn_scope": 2}, 1, False),
        ({"batch_size": 8, "bn_scope": "replica"}, 8, True),
        ({"batch_size": 8, "bn_scope": "replica"}, 4, False),
        ({"batch_size": 8}, 8, False),  # over the batch of all devices
    ],
)
def test_batch_norm_over_a_single_value_is_refused(fields, devices, is_single):
    config = train_config("own/normal", **fields)
    if not is_single:
        assert found(config, Normal, devices=devices) == []
        return
    with pytest.raises(
        InputError, match="batch normalisation has one value a channel in norm, whose output is 0"
    ):
        found(config, Normal, devices=devices)


@pytest.mark.eight_devices
def test_the_run_is_refused_before_its_first_step(tmp_path):
    """One image per step and device, with its own statistics: in stages 2 to 4 over one pixel."""
    config = config_of("resnet18", batch_size=8, bn_scope="replica")
    with pytest.raises(
        InputError, match=r"one value a channel in stage2_block1/norm1, .* and 11 more"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists(), (
        "the corrected command would be refused as another configuration"
    )


def test_the_run_says_its_warnings_once(tmp_path):
    said = []
    config = TrainConfig("own/idle", steps=1, batch_size=128)
    programs = compile_training(config, make=Idle)
    train(config, tmp_path, programs=programs, say=said.append)
    assert [line for line in said if line.startswith("warning: ")] == [
        f"warning: {line}" for line in programs.warnings
    ]
    assert len(programs.warnings) == 1


README = [
    TrainConfig("cifar_resnet20", "digits", epochs=10),
    dataclasses.replace(
        recipe("resnet50_a3").config, dataset="imagenette/160px-v2", batch_size=256, epochs=20
    ),
    dataclasses.replace(recipe("vgg16").config, grad_accum_steps=4),
]


@pytest.mark.parametrize("config", README, ids=["readme", "imagenette", "vgg16"])
def test_commands_of_the_readme_and_the_docs_have_no_warning(config):
    assert found(config) == []


@pytest.mark.slow  # half a minute: networks of full size are traced
@pytest.mark.parametrize("name", list_recipes())
def test_recipes_have_no_warning(name):
    assert found(recipe(name).config) == []


def arms_of(name: str, preset: str) -> dict[str, TrainedArm]:
    """The arms of a study in a preset, at any rate."""
    study = importlib.import_module(f"experiments.{name}").STUDY
    return trained_arms(study, study.presets[preset], dict.fromkeys(study.arms, SelectedRate(0.1)))


QUICK = {("degradation", "quick"), ("auxiliary_heads", "small"), ("inception_module", "small")}


def presets() -> list[Any]:
    """Every preset of every study; few are traced in the quick suite."""
    slow = partial(pytest.param, marks=pytest.mark.slow)
    of_studies = {
        name: importlib.import_module(f"experiments.{name}").STUDY.presets
        for name in (*STUDIES, *BEYOND)
    }
    return [
        (pytest.param if (name, preset) in QUICK else slow)(name, preset)
        for name, its in of_studies.items()
        for preset in its
    ]


@pytest.mark.parametrize(("name", "preset"), presets())
def test_studies_have_no_warning(name, preset):
    for arm in arms_of(name, preset).values():
        assert found(arm.config, arm.make) == [], arm.name
