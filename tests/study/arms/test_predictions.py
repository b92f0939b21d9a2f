"""misclassified.npz against the logged errors, the network itself, and bytes that were changed."""

import dataclasses

import jax
import numpy as np
import pytest

from deepjax.data import dataset_info, load_split
from deepjax.data.augment.basic import normalize
from deepjax.errors import InputError
from deepjax.study.arms.predictions import FILE, read_misclassified, write_misclassified
from deepjax.study.arms.runs import run_arm
from deepjax.training import RunOptions, compile_training, open_run
from deepjax.training.config import replace_options
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from tests.study.toy import trained_arm

IMAGES = 400  # of training; the last of two batches is not full


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The shallow arm with its study directory: one run, evaluated on some training images."""
    arm = trained_arm("shallow", seeds=(5,))
    arm = dataclasses.replace(arm, config=replace_options(arm.config, eval_train_images=IMAGES))
    out = tmp_path_factory.mktemp("study")
    run_arm(arm, out, None, lambda *_: None)
    return arm, arm.run_dirs(out)[0]


@pytest.fixture
def run_dir(trained):
    """The run directory."""
    return trained[1]


def test_its_means_are_the_logged_errors(run_dir):
    wrong, final = read_misclassified(run_dir), read_rows(run_dir / METRICS)[-1]
    assert wrong is not None and final["train_images"] == IMAGES == len(wrong["train"])
    assert wrong["test"].shape == (dataset_info("digits").test_size,)
    for split in ("train", "test"):
        assert wrong[split].dtype == bool
        assert wrong[split].mean() == final[f"{split}_error"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_image_is_the_one_of_its_place_in_the_split(split, trained):
    """The network applied to the stored images in their order, all in one batch."""
    arm, run_dir = trained
    run = open_run(run_dir, make=arm.make)
    data = load_split(dataset_info("digits"), split)
    images = normalize(jax.numpy.asarray(data.images), dataset_info("digits"))
    wrong = np.asarray(run.model.apply(run.variables, images)).argmax(-1) != data.labels
    found = read_misclassified(run_dir)
    assert found is not None
    np.testing.assert_array_equal(found[split], wrong[: len(found[split])])


def test_predicting_again_gives_the_same(trained):
    arm, run_dir = trained
    before = read_misclassified(run_dir)
    write_misclassified(
        run_dir, compile_training(arm.config, RunOptions(), make=arm.make), arm.make
    )
    jax.tree.map(np.testing.assert_array_equal, read_misclassified(run_dir), before)


def test_a_run_without_the_file_has_none(tmp_path):
    assert read_misclassified(tmp_path) is None


def test_a_changed_file_is_refused_or_harmless(run_dir, tmp_path):
    """One flipped bit in each byte, and every length."""
    data, right = (run_dir / FILE).read_bytes(), read_misclassified(run_dir)
    refused = 0
    changed = [data[:i] + bytes([byte ^ 1 << i % 8]) + data[i + 1 :] for i, byte in enumerate(data)]
    for given in (*changed, *(data[:length] for length in range(0, len(data), 7))):
        (tmp_path / FILE).write_bytes(given)
        try:
            jax.tree.map(np.testing.assert_array_equal, read_misclassified(tmp_path), right)
        except InputError as error:
            assert "misclassified.npz is corrupt; delete it, and the same command resumes" in str(
                error
            )
            refused += 1
    assert refused > len(changed) / 2
