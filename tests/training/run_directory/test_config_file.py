"""config.json of today and of version 0.1.0."""

import json

import pytest

from deepjax.errors import InputError
from deepjax.training.config import OPTION_GROUPS, options_of, replace_options, train_config
from deepjax.training.run_directory.config_file import init_run_dir, read_config

CONFIG = train_config(
    "cifar_resnet20",
    ema_decay=0.9,
    resize_backend="pillow",
    progressive_sizes=(8, 12),
    on_nonfinite="skip",
    max_skipped_steps=3,
)
OLD = {
    "model": "cifar_resnet20",
    "dataset": "digits",
    "optimizer": "sgd",
    "loss": "softmax",
    "milestones": [0.5, 0.75],
    "ema": 0.9,
    "decode": "exact",
    "train_sizes": [8, 12],
    "on_bad": "skip",
    "skip_budget": 3,
}


def test_options_have_one_name_each_and_make_the_same_configuration():
    options = options_of(CONFIG)
    assert list(options) == list(OPTION_GROUPS)
    assert len(options) == 59
    assert train_config(**options) == replace_options(CONFIG) == CONFIG


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(InputError, match="option 'mix_up' is unknown; did you mean 'mixup'"):
        train_config("cifar_resnet20", mix_up=0.2)


def test_the_file_has_the_groups_and_is_read_again(tmp_path):
    init_run_dir(tmp_path, CONFIG)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["data"]["progressive_sizes"] == [8, 12]
    assert stored["guard"]["max_skipped_steps"] == 3
    assert read_config(tmp_path) == CONFIG
    init_run_dir(tmp_path, CONFIG)
    with pytest.raises(InputError, match=r"configuration: mixup is 0\.5, there 0\.0; choose"):
        init_run_dir(tmp_path, replace_options(CONFIG, mixup=0.5))


def test_a_flat_file_of_old_names_is_of_the_same_configuration(tmp_path):
    """Options that it lacks have their defaults."""
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    assert read_config(tmp_path) == CONFIG
    init_run_dir(tmp_path, CONFIG)
    with pytest.raises(
        InputError, match="configuration: resize_backend is 'opencv', there 'pillow'; choose"
    ):
        init_run_dir(tmp_path, replace_options(CONFIG, resize_backend="opencv"))


def test_an_option_of_a_newer_version_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLD | {"sam_rho": 0.1}))
    with pytest.raises(InputError, match=r"sam_rho is None, there 0\.1"):
        init_run_dir(tmp_path, CONFIG)
    with pytest.raises(InputError, match=r"is not of a training run .*'sam_rho' is unknown"):
        read_config(tmp_path)
