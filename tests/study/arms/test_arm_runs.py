"""The runs of an arm: trained, collected, diverged, interrupted, copied, refused."""

import dataclasses
import shutil

import numpy as np
import pytest

from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.study.arms.arm import EVAL_TRAIN_IMAGES, Arm, arm_config
from deepjax.study.arms.predictions import FILE
from deepjax.study.arms.runs import collect, is_finished, run_arm
from deepjax.training.config import replace_options
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from tests.study.toy import TRAINING, trained_arm


def say_nothing(*_):
    """No progress."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The shallow arm with two seeds, and its study directory."""
    arm, out = trained_arm("shallow"), tmp_path_factory.mktemp("runs") / "first"
    run_arm(arm, out, None, say_nothing)
    return arm, out


@pytest.fixture
def copied(study, tmp_path):
    """The arm and a copy of its study directory."""
    return study[0], shutil.copytree(study[1], tmp_path / "study")


def test_the_configuration_of_an_arm():
    config = arm_config(Arm("own/a", training={"steps": 7}), "digits", TRAINING)
    assert (config.total_steps, config.batch_size) == (7, TRAINING["batch_size"])
    assert config.data.eval_train_images == EVAL_TRAIN_IMAGES


def test_a_part_of_the_images_is_trained_for_as_many_steps():
    arm, training = Arm("own/a", part="[:400]"), {"epochs": 2, "batch_size": 100}
    config = arm_config(arm, "digits", training)
    whole = arm_config(dataclasses.replace(arm, part=""), "digits", training)
    assert config.dataset == "digits[:400]"
    assert config.total_steps == whole.total_steps == 28


def test_a_part_of_the_images_is_what_is_trained_and_evaluated(tmp_path):
    arm = trained_arm("shallow", seeds=(0,))
    arm = dataclasses.replace(arm, config=replace_options(arm.config, dataset="digits[:400]"))
    run_arm(arm, tmp_path, None, say_nothing)
    result = collect(arm, tmp_path)
    assert result is not None and result.dataset == "digits[:400]"
    assert result.final("train_images") == [400]
    assert [result.misclassified[split].shape for split in ("train", "test")] == [
        (1, 400),
        (1, 360),
    ]
    assert result.errors("train") == pytest.approx(result.final("train_error"))


def test_names_that_are_no_directory_are_refused(study):
    with pytest.raises(InputError, match=r"arm is '\.\./a'"):
        dataclasses.replace(study[0], name="../a")


def test_the_result_has_a_row_and_images_for_each_seed(study):
    arm, out = study
    result = collect(arm, out)
    assert result is not None and result.diverged == 0
    for split in ("train", "test"):
        size = {"train": 1437, "test": 360}[split]
        assert result.misclassified[split].shape == (2, size)
        assert result.errors(split) == pytest.approx(result.final(f"{split}_error"))
        assert result.error(split) == pytest.approx(np.mean(result.errors(split)))
    assert [rows[-1]["step"] for rows in result.rows] == [TRAINING["steps"]] * 2
    assert result.errors("test")[0] != result.errors("test")[1]
    assert list(result.first()[0]) == list(result.last()[1]) == ["dense0", "head"]


def test_without_all_runs_there_is_no_result(study, tmp_path):
    arm, out = study
    assert collect(arm, tmp_path) is None
    assert collect(dataclasses.replace(arm, seeds=(0, 1, 2)), out) is None


def test_a_run_that_was_killed_before_its_images_were_predicted_is_completed(copied):
    arm, out = copied
    [first, second] = arm.run_dirs(out)
    before, rows = (first / FILE).read_bytes(), read_rows(first / METRICS)
    (first / FILE).unlink()
    assert not is_finished(first) and is_finished(second) and collect(arm, out) is None
    run_arm(arm, out, None, say_nothing)
    assert (first / FILE).read_bytes() == before and read_rows(first / METRICS) == rows


def test_a_corrupt_file_of_images_is_refused_until_it_is_deleted(copied):
    arm, out = copied
    path = arm.run_dirs(out)[1] / FILE
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"seed1/misclassified\.npz is corrupt; delete it"):
        collect(arm, out)


def test_runs_of_another_configuration_are_refused(study):
    arm, out = study
    other = dataclasses.replace(arm, config=replace_options(arm.config, momentum=0.5))
    with pytest.raises(InputError, match=r"lr0\.8-seed0 is a run of another configuration"):
        collect(other, out)


def test_a_finished_run_of_another_study_is_copied_and_only_of_the_same_configuration(
    study, tmp_path, monkeypatch
):
    arm, out = study
    (out / "runs" / arm.name / "lr0.8-seed0" / "run.lock").write_text("")
    renamed = dataclasses.replace(arm, name="other")
    unfinished = renamed.run_dirs(tmp_path / "second")[0]
    (unfinished.with_name(f"{unfinished.name}.partial") / "of a copy that was killed").mkdir(
        parents=True
    )
    unfinished.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("deepjax.study.arms.runs.compile_training", None)  # nothing may be trained
        run_arm(renamed, tmp_path / "second", None, say_nothing, reuse_runs_from=out.parent)
        one, other = collect(arm, out), collect(renamed, tmp_path / "second")
        assert one is not None and other is not None and one.rows == other.rows
        np.testing.assert_array_equal(one.misclassified["test"], other.misclassified["test"])
        assert [path.name for path in sorted(unfinished.parent.iterdir())] == [
            "lr0.8-seed0",
            "lr0.8-seed1",
        ]
        assert not list(tmp_path.rglob("run.lock"))
        longer = dataclasses.replace(arm, config=replace_options(arm.config, steps=13))
        with pytest.raises(TypeError):
            run_arm(longer, tmp_path / "third", None, say_nothing, reuse_runs_from=out.parent)


def test_a_seed_that_diverges_is_a_result_and_guesses(tmp_path):
    """At a rate of 1,000 with decay."""
    arm = trained_arm("shallow", rate=1e3, seeds=(0, 1))
    diverges = replace_options(arm.config, steps=240, momentum=0.999, weight_decay=0.99)
    arm = dataclasses.replace(arm, config=diverges)
    run_arm(arm, tmp_path, None, say_nothing)
    result = collect(arm, tmp_path)
    assert result is not None and result.diverged == 2
    assert result.final("test_error") == pytest.approx([0.9, 0.9]) == result.errors("test")
    assert result.misclassified["train"].shape == (2, dataset_info("digits").train_size)
