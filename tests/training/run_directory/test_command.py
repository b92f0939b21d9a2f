"""The command of a configuration, parsed again, gives that configuration."""

import shlex

import pytest

from deepjax.cli.train import parsed
from deepjax.training.config import train_config
from deepjax.training.recipes.imagenet import list_recipes, recipe
from deepjax.training.run_directory.command import changed_options, train_command
from tests.data.own.images import write_classes

CHANGED = (
    {},
    {"augment": False, "nesterov": False, "freeze_batch_norm": True, "weights": "a b.npz"},
    {"milestones": (), "schedule": "step", "progressive_sizes": (12, 16), "bn_scope": 32},
    {"model_args": ("stages=[1,1,1]", "norm=none"), "bn_scope": "replica", "precision": "bfloat16"},
    {"freeze": ("!classifier", "stem*"), "rate_factors": ("stage1*=0.1",), "weights": "runs/$x"},
    {"learning_rate": 1e-07, "weight_decay": 0.1 + 0.2, "seed": 2**32 - 1, "steps": 10},
)


def again(config):
    program, name, *words = shlex.split(train_command(config, "runs/it's here"))
    assert (program, name) == ("deepjax", "train")
    options = parsed(words)
    assert str(options.output_dir) == "runs/it's here"
    return options.config


@pytest.mark.parametrize("name", list_recipes())
def test_recipes(name):
    config = recipe(name).config
    assert again(config) == config


@pytest.mark.parametrize("options", CHANGED, ids=lambda options: "-".join(options) or "none")
def test_options(options):
    config = train_config("cifar_resnet20", **options)
    assert again(config) == config
    assert changed_options(config) == {"model": config.model, "dataset": "digits"} | options


@pytest.mark.parametrize("name", ["photos", "photos[test_fraction=0.1,split_seed=3]", "-photos"])
def test_own_images(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / name.partition("[")[0], {"ant": 10, "bee": 10})
    config = train_config("resnet18", name)
    assert again(config) == config
