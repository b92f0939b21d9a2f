"""Opening a run for the instruments: the same network, numbers and images that training had."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis import trace
from deepjax.errors import InputError
from deepjax.training import RunOptions, TrainConfig, train
from deepjax.training.checkpoint.inspect import read_state
from deepjax.training.config import replace_options, train_config
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.run_dir import open_run

CONFIG = train_config(
    model="cifar_resnet20", width=2, batch_size=240, epochs=2, ema_decay=0.5, image_size=10
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(CONFIG, out, RunOptions(save_every=5))
    return out


def test_the_test_error_of_the_run_is_had_again(run):
    opened = open_run(run, averaged=True)
    assert (opened.step, opened.steps, opened.config) == (10, (5, 10), CONFIG)
    batch = opened.batch(360, "test")
    assert batch["image"].shape == (360, 10, 10, 1)
    wrong = jnp.argmax(opened.model.apply(opened.variables, batch["image"]), -1) != batch["label"]
    last = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "final"][-1]
    assert float(jnp.mean(wrong, dtype=jnp.float32)) == pytest.approx(last["test_error"], abs=1e-6)


@pytest.mark.parametrize(
    ("step", "split", "fields", "side"),
    [
        (0, "train", {}, 8),
        (5, "train", {}, 10),
        (10, "train", {}, 12),
        (5, "test", {}, 12),
        (5, "test", {"eval_size": 14}, 14),
    ],
)
def test_batches_have_the_size_of_their_step_or_of_evaluation(run, step, split, fields, side):
    """Three sizes over ten steps; the last one is evaluated, unless eval_size says otherwise."""
    config = replace_options(CONFIG, progressive_sizes=(8, 10, 12), **fields)
    opened = dataclasses.replace(open_run(run), config=config, step=step)
    assert opened.batch(3, split)["image"].shape == (3, side, side, 1)


def test_a_data_set_that_is_not_prepared_leaves_nothing(tmp_path):
    """The same directory takes the corrected command."""
    config = dataclasses.replace(CONFIG, dataset="cifar10")
    with pytest.raises(InputError, match=r"'cifar10' is not prepared .*prepare it with"):
        train(config, tmp_path / "run", RunOptions(data_dir=str(tmp_path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet2012_real"])
def test_sets_for_tests_alone_are_not_trained_on(name):
    with pytest.raises(
        InputError, match=f"dataset is '{name}'; allowed: one with training and test images"
    ):
        TrainConfig("resnet18", name)


def test_steps_differ_and_instruments_take_them(run):
    first, last = open_run(run, step=5), open_run(run)
    kernels = [
        np.asarray(opened.variables["params"]["stem_conv"]["kernel"]) for opened in (first, last)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 0
    batch = last.batch(16)
    np.testing.assert_array_equal(batch["label"], last.batch(32)["label"][:16])
    assert trace(last.model, last.variables, batch).loss > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step": 7}, "step is 7; allowed: one whose checkpoint .* keeps: 5, 10"),
        ({"path": "nowhere"}, "nowhere holds no config.json"),
    ],
)
def test_what_cannot_be_opened(run, arguments, words):
    with pytest.raises(InputError, match=words):
        open_run(**({"path": run} | arguments))


def test_averages_that_were_not_kept(run, monkeypatch):
    folder, state = read_state(run)
    monkeypatch.setattr(
        "deepjax.training.run_directory.run_dir.read_state",
        lambda path, step: (folder, {**state, "ema": {}}),
    )
    with pytest.raises(
        InputError, match="averaged is True; allowed: False for a run without --ema-decay"
    ):
        open_run(run, averaged=True)


@pytest.mark.parametrize("text", ["[]", "{", json.dumps({"depth": 3})])
def test_a_configuration_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config.json is not of a training run"):
        open_run(tmp_path)


def test_a_run_without_checkpoints(tmp_path):
    init_run_dir(tmp_path, CONFIG)
    with pytest.raises(InputError, match="holds no checkpoint"):
        open_run(tmp_path)


def test_batches_of_test_images_have_none_of_the_training(run):
    opened = open_run(run, dataset="digits[-100:]")
    assert opened.batch(4)["image"].shape == (4, 10, 10, 1)
    with pytest.raises(InputError, match=r"for tests \(records 1337 to 1436 of 'train'\)"):
        opened.batch(4, "test")
