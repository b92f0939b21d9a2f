"""A run directory written by version 0.1.0 (golden/README.md): it resumes, and its weights load."""

import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.training import RunOptions, train
from deepjax.training.checkpoint.inspect import named_leaves, read_state
from deepjax.training.config import replace_options, train_config
from deepjax.training.metrics.metrics_log import TIMES, read_rows
from deepjax.training.run_directory.run_dir import open_run

GOLDEN = Path(__file__).parent / "golden"
CONFIG = train_config(
    model="cifar_resnet20", width=2, batch_size=64, steps=50, ema_decay=0.9, label_smoothing=0.1
)


@pytest.fixture
def run(tmp_path):
    with tarfile.open(GOLDEN / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_it_resumes_to_the_parameters_and_the_log_of_the_uninterrupted_run(run):
    """To rounding: the golden run had one device, and another CPU may sum in another order."""
    result = train(CONFIG, run, RunOptions(save_every=22))
    assert (result.resumed_at, result.steps) == (41, 50)
    final = named_leaves(read_state(run)[1])
    with np.load(GOLDEN / "final.npz") as expected:
        for name in expected.files:
            np.testing.assert_allclose(final[name], expected[name], rtol=1e-3, atol=1e-4)
    rows, expected = read_rows(run / "metrics.jsonl"), read_rows(GOLDEN / "uninterrupted.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [
        (row["kind"], row["step"]) for row in expected
    ]
    ignored = {*TIMES, "kind", "digest"}
    for row, wanted in zip(rows, expected, strict=True):
        numbers, wanted = (
            {k: v for k, v in named_leaves(r).items() if k.split("/")[0] not in ignored}
            for r in (row, wanted)
        )
        assert numbers == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"ema_decay": 0.95}, r"ema.* is 0\.95, there 0\.9;"), ({"seed": 1}, "seed is 1, there 0;")],
)
def test_another_configuration_is_refused_by_the_name_of_the_option(run, change, words):
    with pytest.raises(InputError, match=words):
        train(replace_options(CONFIG, **change), run)


def test_its_weights_load_and_evaluate_to_the_logged_error(run):
    newest = open_run(run)
    assert (newest.step, newest.steps, newest.config) == (41, (22, 41), CONFIG)
    opened = open_run(run, 22, averaged=True)
    batch = opened.batch(360, "test")
    logits = jax.jit(opened.model.apply)(opened.variables, batch["image"])
    row = next(row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "epoch")
    assert (row["step"], row["test_images"]) == (22, len(logits))
    wrong = jnp.argmax(logits, -1) != batch["label"]
    assert int(jnp.sum(wrong, dtype=jnp.int32)) == round(row["test_error"] * 360)
