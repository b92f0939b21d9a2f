"""The layer probe during training: the rows, their numbers, and no effect on the training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from deepjax.analysis import TRAIN, hessian, trace
from deepjax.data import sample
from deepjax.errors import InputError
from deepjax.training import RunOptions, compile_training, train
from deepjax.training.build import step_options
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.config import replace_options, train_config
from deepjax.training.metrics.metrics_log import TIMES, read_rows
from deepjax.training.metrics.probe import make_probe
from deepjax.training.step.step import DROPOUT, classifier_loss, preprocess_batch

# 5 steps per epoch.
CONFIG = train_config(
    model="cifar_resnet20", width=2, batch_size=240, epochs=2, label_smoothing=0.1
)


@pytest.fixture(scope="module")
def programs():
    return compile_training(CONFIG)


def rows_of(out):
    return [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_rows(out / "metrics.jsonl")
    ]


def test_a_traced_run_ends_in_the_same_bits_and_its_rows_survive_a_resume(programs, tmp_path):
    options = RunOptions(probe_every=3, probe="layers", save_every=4)
    train(CONFIG, tmp_path / "plain", programs=programs)
    train(CONFIG, tmp_path / "traced", options, programs=programs)
    assert digest(tmp_path / "plain") == digest(tmp_path / "traced")
    traces = [row for row in rows_of(tmp_path / "traced") if row["kind"] == "trace"]
    assert [row["step"] for row in traces] == [0, 3, 6, 9]
    assert {"stage1_block1/conv1", "stage1_block1/sum", "head", "network"} <= set(
        traces[0]["layers"]
    )

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
    batch = programs.partitioner.put_batch(
        {"image": programs.train_split.images[:240], "label": programs.train_split.labels[:240]}
    )
    seen = make_probe(programs, "layers")(state, batch).layers
    key = jax.random.fold_in(state.key, 0)
    by_hand = trace(
        programs.model,
        {"params": state.params, "batch_stats": state.batch_stats},
        preprocess_batch(key, batch, programs.dataset, step_options(CONFIG)),
        loss=classifier_loss,
        key=jax.random.fold_in(key, DROPOUT),
    )
    before = jax.tree.map(np.asarray, state.params)
    after, metrics = programs.train_step(state, batch)
    np.testing.assert_allclose(seen.loss, metrics["loss"], rtol=1e-5)
    for a, b in zip(seen.layers, by_hand.layers, strict=True):
        np.testing.assert_allclose(
            [a.mean, a.gradient_norm], [b.mean, b.gradient_norm], rtol=1e-3, atol=1e-6
        )
    row = {row.layer: row for row in seen.layers}["stem_conv"]
    moved = np.asarray(after.params["stem_conv"]["kernel"]) - before["stem_conv"]["kernel"]
    np.testing.assert_allclose(
        row.update_ratio,
        np.linalg.norm(moved) / np.linalg.norm(before["stem_conv"]["kernel"]),
        rtol=1e-3,
    )


def test_the_economy_tier_looks_at_top_level_modules(programs):
    state = programs.fresh_state(CONFIG)
    batch = programs.partitioner.put_batch(
        {"image": programs.train_split.images[:240], "label": programs.train_split.labels[:240]}
    )
    layers = [row.layer for row in make_probe(programs, "top")(state, batch).layers.layers]
    assert "stage1_block1" in layers and all("/" not in layer for layer in layers)


@pytest.mark.system
def test_it_looks_at_images_of_the_step_s_own_size(programs):
    """The step resizes arrays on the device: to 8 pixels in five of ten steps, then to 12."""
    resizing = dataclasses.replace(
        programs, config=replace_options(CONFIG, progressive_sizes=(8, 12))
    )
    tracer, state = make_probe(resizing, "top"), programs.fresh_state(CONFIG)
    batch = programs.partitioner.put_batch(
        {"image": programs.train_split.images[:240], "label": programs.train_split.labels[:240]}
    )
    looks = [tracer(state.replace(step=state.step + step), batch) for step in (0, 5, 4)]
    assert [
        {row.layer: row for row in look.layers.layers}["stem_conv"].shape[1] for look in looks
    ] == [8, 12, 8]


@pytest.mark.slow
def test_the_full_tier_sees_curvature_and_noise_of_the_training_loss(programs):
    state = programs.fresh_state(CONFIG)
    batch = programs.partitioner.put_batch(
        {"image": programs.train_split.images[:240], "label": programs.train_split.labels[:240]}
    )
    row = make_probe(programs, "full")(state, batch).row()
    seen = jax.device_get(
        preprocess_batch(
            jax.random.fold_in(state.key, 0), batch, programs.dataset, step_options(CONFIG)
        )
    )
    params, variables = ravel_pytree(state.params), {"batch_stats": state.batch_stats}

    def loss(flat, part):  # by hand: of the network in training
        logits, _ = programs.model.apply(
            variables | {"params": params[1](flat)},
            part["image"],
            train=True,
            mutable=["batch_stats"],
        )
        return classifier_loss(logits, part)

    product = jax.jit(
        lambda v: jax.jvp(jax.grad(lambda flat: loss(flat, seen)), (params[0],), (v,))[1]
    )
    matrix = LinearOperator(
        (params[0].size,) * 2,
        lambda v: np.asarray(product(jnp.asarray(v.ravel(), jnp.float32)), float),
    )
    found = row["curvature_and_noise"]
    # ARPACK's eigenvalues; 15 Lanczos steps approach them from the inside.
    for name, which in (("lambda_max", "LA"), ("lambda_min", "SA")):
        (true,) = eigsh(matrix, 1, which=which, return_eigenvectors=False, tol=1e-3, maxiter=300)
        assert 0.8 <= found[name] / true <= 1.001
    parts = [jax.tree.map(lambda leaf, i=i: leaf[60 * i : 60 * (i + 1)], seen) for i in range(4)]
    gradients = np.stack([jax.jit(jax.grad(loss))(params[0], part) for part in parts]).astype(float)
    small, big = np.square(gradients).sum(1).mean(), np.square(gradients.mean(0)).sum()
    np.testing.assert_allclose(found["g2"], (240 * big - 60 * small) / 180, rtol=1e-3)
    np.testing.assert_allclose(found["trace_sigma"], (small - big) / (1 / 60 - 1 / 240), rtol=1e-3)


@pytest.mark.numerics
def test_sharpness_is_the_largest_eigenvalue_on_a_fixed_sample(programs):
    """Validated against ARPACK; a function of the state alone, whatever the batch."""
    state = programs.fresh_state(CONFIG)
    images, labels = programs.train_split.images, programs.train_split.labels
    batches = [
        programs.partitioner.put_batch({"image": images[a : a + 240], "label": labels[a : a + 240]})
        for a in (0, 240)
    ]
    probe = make_probe(programs, "sharpness")
    rows = [probe(state, batch).row()["curvature_and_noise"] for batch in batches]
    assert rows[0] == rows[1]
    seen = sample(programs.dataset, 128, 0, "train", CONFIG.data.image_size)
    seen["target"] = optax.smooth_labels(jax.nn.one_hot(seen["label"], 10), 0.1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    loss = functools.partial(classifier_loss, kind=CONFIG.objective.loss)
    matrix = hessian(programs.model, variables, seen, loss=loss, mode=TRAIN)
    (true,) = eigsh(matrix.to_scipy(), 1, which="LA", return_eigenvectors=False, tol=1e-3)
    assert 0.85 <= rows[0]["lambda_max"] / true <= 1.001
    assert rows[0]["learning_rate"] > 0 and rows[0]["edge_of_stability"] > 0


def test_pmap_cannot_be_traced():
    with pytest.raises(InputError, match="probe_every is 5; allowed: 0 under strategy 'pmap'"):
        dataclasses.replace(RunOptions(strategy="pmap"), probe_every=5)
