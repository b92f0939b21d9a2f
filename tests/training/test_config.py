"""A configuration is checked when it is made; a directory belongs to one configuration."""

import dataclasses

import pytest

from deepjax.errors import InputError
from deepjax.training import TrainConfig
from deepjax.training.config import replace_options
from deepjax.training.run_directory.config_file import init_run_dir

CONFIG = TrainConfig(model="cifar_resnet20")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "cifar_resnet21"),
        ("dataset", "digit"),
        ("epochs", 0),
        ("epochs", 10**7),
        ("steps", -1),
        ("steps", 2**31),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("milestones", (0.7, 0.5)),
        ("milestones", (0.5, 1.5)),
        ("warmup_epochs", -1.0),
        ("momentum", 1.0),
        ("weight_decay", float("nan")),
        ("width", -8),
        ("optimizer", "adam"),
        ("decay_rate", 0.0),
        ("decay_epochs", 0.0),
        ("grad_clip_norm", -1.0),
        ("pca_lighting_std", 0.1),  # the digits are grey
        ("auto_augment", "random"),
        ("augment_operations", 0),
        ("augment_magnitude", 11.0),
        ("random_erasing", 1.5),
        ("loss", "hinge"),
        ("target_threshold", 0.2),  # the loss is softmax
        ("drop_path", 1.0),
        ("progressive_sizes", (160, 0)),
        ("eval_size", -1),
        ("eval_crop", 1.01),
        ("eval_train_images", -1),
        ("eval_crop", 0.05),
        ("resize_backend", "slow"),
        ("min_crop_area", 0.0),
        ("resize_shorter_side", (480, 256)),
        ("resize_shorter_side", (256, 384, 512)),
        ("repeated_augmentation", 0),
        ("on_decode_error", "ignore"),
        ("max_decode_errors", -1),
        ("seed", -1),
    ],
)
def test_values_out_of_range_name_the_field(field, value):
    with pytest.raises(InputError, match=field):
        replace_options(CONFIG, **{field: value})


def test_length_in_steps_or_epochs():
    assert dataclasses.replace(CONFIG, epochs=3, batch_size=64).total_steps == 3 * (1437 // 64)
    assert dataclasses.replace(CONFIG, steps=7).total_steps == 7


def test_progressive_resizing_has_equal_parts():
    config = replace_options(CONFIG, steps=8, progressive_sizes=(8, 12, 16, 16), eval_size=20)
    assert [config.shape_at(step)[0] for step in range(8)] == [8, 8, 12, 12, 16, 16, 16, 16]
    assert (config.input_shape, config.eval_shape) == ((16, 16, 1), (20, 20, 1))
    assert CONFIG.shape_at(3) == CONFIG.eval_shape == CONFIG.input_shape == (8, 8, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"width": 8},
        {"dataset": "cifar10"},
        {"learning_rate": 0.2},
        {"milestones": (0.1,)},
    ],
)
def test_a_directory_of_another_configuration_is_refused_by_field(tmp_path, change):
    init_run_dir(tmp_path / "run", CONFIG)
    init_run_dir(tmp_path / "run", CONFIG)
    with pytest.raises(InputError, match=next(iter(change))):
        init_run_dir(tmp_path / "run", replace_options(CONFIG, **change))


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints", "measured", "result.json"])
def test_results_without_a_configuration_are_not_taken_for_another_s(left, tmp_path):
    (tmp_path / "notes.txt").write_text("no result")
    init_run_dir(tmp_path, CONFIG)
    (tmp_path / "config.json").unlink()
    (tmp_path / left).mkdir()
    with pytest.raises(
        InputError,
        match=f"holds {left} but no config.json; restore it, or choose another --output-dir",
    ):
        init_run_dir(tmp_path, dataclasses.replace(CONFIG, learning_rate=0.2))
    assert not (tmp_path / "config.json").exists()


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "cif')
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        init_run_dir(tmp_path, CONFIG)


def test_an_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        init_run_dir(tmp_path / "file" / "run", CONFIG)


@pytest.mark.parametrize("change", [{"epochs": 20}, {"steps": 7}, {"epochs": 20, "steps": 500}])
def test_a_run_of_another_length_is_told_why(tmp_path, change):
    init_run_dir(tmp_path, CONFIG)
    with pytest.raises(
        InputError,
        match="the learning-rate schedule depends on the number of steps: a run of another length",
    ):
        init_run_dir(tmp_path, replace_options(CONFIG, **change))
