"""Evaluation of a run compared with its final row: it agrees, differs by name, or is an error."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from deepjax.cli.evaluate import Options, main
from deepjax.command_line import parse
from deepjax.data import catalog, dataset_info, register
from deepjax.errors import InputError
from deepjax.evaluation.agreement import count_borderline
from deepjax.training import TrainConfig, train
from deepjax.training.run_directory.config_file import read_config
from tests.data.made import write_made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images of 20 x 16 pixels, as binary_alpha_digits.

    Resized to a square the error differs.
    """
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    labels = np.arange(128) % 10
    images = (rng.integers(0, 80, (128, 20, 16, 1)) + 17 * labels[:, None, None, None]).astype(
        np.uint8
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "CATALOG", dict(catalog.CATALOG))
        patch.setenv("TFDS_DATA_DIR", str(folder))
        register(
            write_made(folder, (images[:64], labels[:64]), (images[64:], labels[64:]), "oblong")
        )
        train(
            TrainConfig("cifar_plain20", "oblong", width=2, batch_size=16, epochs=2, ema_decay=0.5),
            folder / "run",
        )
        yield folder / "run"


def said(capsys, out, *arguments) -> str:
    main(parse(Options, [*map(str, arguments), "--output-dir", str(out)]))
    return capsys.readouterr().out


def test_a_run_agrees_with_its_own_final_row(run, tmp_path, capsys):
    """In the shape of its images, with its averages, in other batches."""
    line = said(capsys, tmp_path, "--run", run, "--batch-size", 50)
    assert f"agrees with the final row of {run}: test error " in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--crop", "20"], "size of images is (20, 20), in the run (20, 16)"),
        (["--precision", "bfloat16"], "precision is bfloat16, in the run float32"),
        (["--normalize", "half"], "mean and std is"),
    ],
)
def test_another_evaluation_says_in_what_it_is_another(run, tmp_path, capsys, arguments, reason):
    line = said(capsys, tmp_path, "--run", run, *arguments)
    assert (
        f"not the evaluation of the final row of {run} ({reason}" in line
        and "; the row has test error" in line
    )


def changed(run, tmp_path, **fields):
    """A copy of a run whose final row says something else."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    *rows, last = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text(
        "\n".join([*rows, json.dumps(json.loads(last) | fields)]) + "\n"
    )
    return copy


@pytest.mark.parametrize(
    "fields",
    [
        {"test_error": 0.1},
        {"test_loss": 0.1},
        {"test_top5_error": 0.9},
        {"test_loss": float("nan")},
    ],
)
def test_what_nothing_explains_is_an_error_and_the_result_is_written(run, tmp_path, fields):
    copy = changed(run, tmp_path, **fields)
    with pytest.raises(
        InputError, match=r"does not agree with the final row of .*rounding explains"
    ) as caught:
        main(parse(Options, ["--run", str(copy), "--output-dir", str(tmp_path / "out")]))
    assert "\n" not in str(caught.value) and (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"step": 4}, "step is 8, in the run 4"),
        ({"test_images": 63}, "number of images is 64, in the run 63"),
        ({"kind": "epoch"}, "not compared with the final row of .*: its training has not ended"),
    ],
)
def test_a_final_row_of_something_else(run, tmp_path, capsys, fields, words):
    line = said(capsys, tmp_path / "out", "--run", changed(run, tmp_path, **fields))
    assert words.partition(".*")[0] in line and words.rpartition(".*")[2] in line


def test_another_description_under_the_same_name_is_named_and_not_resumed(
    run, tmp_path, capsys, monkeypatch
):
    """config.json has only the name of the data set."""
    copy = changed(run, tmp_path, kind="epoch")
    other = dataclasses.replace(dataset_info("oblong"), mean=20.0)
    monkeypatch.setitem(catalog.CATALOG, "oblong", other)
    config = read_config(copy)
    with pytest.raises(
        InputError,
        match=r"'oblong' is registered with another description .*: mean is \[20.0\], there \[\d+",
    ):
        train(config, copy)
    assert "(mean of the data set is [20.0], in the run [" in said(
        capsys, tmp_path / "out", "--run", run
    )


def test_runs_of_different_sets_are_not_tested_on_one_of_them(run, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "CATALOG", dict(catalog.CATALOG))
    register(dataclasses.replace(dataset_info("oblong"), name="others"))
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "config.json").write_text(
        json.dumps(json.loads((run / "config.json").read_text()) | {"dataset": "others"})
    )
    with pytest.raises(
        InputError, match="dataset is ''; allowed: one of oblong, others, of the runs"
    ):
        main(parse(Options, ["--run", str(run), str(other), "--output-dir", str(tmp_path / "out")]))


def test_nothing_is_left_of_an_evaluation_that_cannot_be(run, tmp_path):
    for wrong in (
        ["--protocol", "10-crop"],
        ["--data-dir", str(tmp_path), "--dataset", "fashion_mnist"],
    ):
        with pytest.raises(
            InputError,
            match=r"'1-crop' for oblong, whose images are all of one size|is not prepared",
        ):
            main(parse(Options, ["--run", str(run), "--output-dir", str(tmp_path / "out"), *wrong]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("k", [1, 2])
def test_borderline_images_are_all_that_rounding_can_judge_otherwise(k):
    """Compared with adding the largest error to the label's score, the opposite to all others."""
    scores = np.asarray(
        jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (500, 6)) * 3), np.float32
    )
    labels = np.asarray(jax.random.randint(jax.random.key(1), (500, 1), 0, 6))
    error = 0.02 * np.ptp(scores, axis=1, keepdims=True)
    label = np.arange(6) == labels

    def right(sign: int) -> np.ndarray:
        moved = scores + np.where(label, sign, -sign) * error
        own = np.take_along_axis(moved, labels, axis=1)
        return np.sum(moved > own, axis=1) < k

    assert count_borderline(scores, labels, k, 0.02) == np.sum(right(1) != right(-1)) > 5
