"""Looking at every layer during training: the rows, their numbers, and that nothing of the training changes."""

import dataclasses

import jax
import numpy as np
import pytest

from deepjax.analysis import trace
from deepjax.errors import InputError
from deepjax.training import RunOptions, TrainConfig, build, train
from deepjax.training.checkpoint import digest
from deepjax.training.logs import read_rows
from deepjax.training.programs import step_options
from deepjax.training.step import DROPOUT, classifier_loss, prepared
from deepjax.training.tracing import make_tracer

CONFIG = TrainConfig(model="cifar_resnet20", width=2, batch_size=240, epochs=2, label_smoothing=0.1)  # 5 steps an epoch


@pytest.fixture(scope="module")
def programs():
    return build(CONFIG)


def rows_of(out):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_rows(out / "metrics.jsonl")]


def test_a_traced_run_ends_in_the_same_bits_and_its_rows_survive_a_resume(programs, tmp_path):
    options = RunOptions(trace_every=3, trace_tier="business", save_every=4)
    train(CONFIG, tmp_path / "plain", programs=programs)
    train(CONFIG, tmp_path / "traced", options, programs=programs)
    assert digest(tmp_path / "plain") == digest(tmp_path / "traced")
    traces = [row for row in rows_of(tmp_path / "traced") if row["kind"] == "trace"]
    assert [row["step"] for row in traces] == [0, 3, 6, 9]
    assert {"stage1_block1/conv1", "stage1_block1/sum", "head", "network"} <= set(traces[0]["layers"])

    class Cut(Exception):
        pass

    def cut(done, total, note):
        if done == 8:
            raise Cut

    with pytest.raises(Cut):
        train(CONFIG, tmp_path / "cut", options, programs=programs, report=cut)
    train(CONFIG, tmp_path / "cut", options, programs=programs)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "traced")


def test_the_numbers_are_those_of_trace_and_of_the_optimizer(programs):
    state = programs.fresh_state(CONFIG)
    batch = programs.spread.put_batch({"image": programs.train.images[:240], "label": programs.train.labels[:240]})
    seen = make_tracer(programs, "business")(state, batch)
    key = jax.random.fold_in(state.key, 0)
    by_hand = trace(
        programs.model,
        {"params": state.params, "batch_stats": state.batch_stats},
        prepared(key, batch, programs.dataset, step_options(CONFIG)),
        loss=classifier_loss,
        rngs={"dropout": jax.random.fold_in(key, DROPOUT)},
    )
    before = jax.tree.map(np.asarray, state.params)
    after, metrics = programs.train_step(state, batch)
    np.testing.assert_allclose(seen.loss, metrics["loss"], rtol=1e-5)
    for a, b in zip(seen.layers, by_hand.layers, strict=True):
        np.testing.assert_allclose([a.mean, a.gradient_norm], [b.mean, b.gradient_norm], rtol=1e-3, atol=1e-6)
    row = {row.layer: row for row in seen.layers}["stem_conv"]
    moved = np.asarray(after.params["stem_conv"]["kernel"]) - before["stem_conv"]["kernel"]
    np.testing.assert_allclose(row.update_ratio, np.linalg.norm(moved) / np.linalg.norm(before["stem_conv"]["kernel"]), rtol=1e-3)


def test_the_economy_tier_looks_at_top_level_modules(programs):
    state = programs.fresh_state(CONFIG)
    batch = programs.spread.put_batch({"image": programs.train.images[:240], "label": programs.train.labels[:240]})
    layers = [row.layer for row in make_tracer(programs, "economy")(state, batch).layers]
    assert "stage1_block1" in layers and all("/" not in layer for layer in layers)


def test_pmap_cannot_be_traced():
    with pytest.raises(InputError, match="trace_every is 5; allowed: 0 under strategy 'pmap'"):
        dataclasses.replace(RunOptions(strategy="pmap"), trace_every=5)
