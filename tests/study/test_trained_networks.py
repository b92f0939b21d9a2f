"""Trained networks: a permuted copy is the same function, and ends share their beginning."""

import dataclasses

import jax
import numpy as np
import pytest

from deepjax.analysis import TRAIN, edge_of_stability, hessian, init_variables
from deepjax.models import cifar_stages, create_model
from deepjax.study.finetune import compiled_training, finetune, finish, iterate_training, snapshot
from deepjax.study.study import SeedContext
from deepjax.training import RunOptions, open_run, train
from deepjax.training.config import train_config
from experiments.trained_networks import (
    ALPHAS,
    EPOCHS,
    STARTS,
    STUDY,
    line_to,
    measure,
    permuted,
    sharpness,
)


def test_a_permuted_copy_is_another_network_of_the_same_function():
    model = create_model("cifar_resnet20", stages=cifar_stages(8), width=4)
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    variables = init_variables(model, jax.random.key(0), images.shape)
    stats = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(jax.random.key(2), leaf.shape),
        variables["batch_stats"],
    )
    variables = {**variables, "batch_stats": stats}
    copy = permuted(variables, 3)
    kernels = [each["params"]["stage3_block1"]["conv1"]["kernel"] for each in (variables, copy)]
    assert not np.allclose(*kernels)
    outputs = [np.asarray(model.apply(each, images)) for each in (variables, copy)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for kind in ("plain", "resnet"):
        config = train_config(
            f"cifar_{kind}20", epochs=3, batch_size=240, width=2, warmup_epochs=1.0, seed=3
        )
        train(config, folder / kind, RunOptions(keep_best=0))
        found[f"{kind}20"] = folder / kind
    return found


@pytest.mark.slow  # compilation
def test_finishing_a_snapshot_of_the_start_is_training_from_there(runs):
    run = open_run(runs["plain20"])
    programs, config = compiled_training(run.config), run.config
    _, state = next(iter(iterate_training(programs, config)))
    start = snapshot(state)
    other = dataclasses.replace(config, seed=11)
    expected = finetune(other, {name: start[name] for name in ("params", "batch_stats")})
    jax.tree.map(np.testing.assert_array_equal, finish(programs, other, start), expected)


@pytest.mark.slow  # compilation
def test_the_measurements_of_two_small_runs(runs):
    preset = dataclasses.replace(STUDY.presets["quick"], sizes={"depth": 20})
    context = SeedContext("digits", preset, 3, runs, None, lambda *_: None)
    found = measure(context)
    for kind in ("plain", "residual"):
        assert list(found["at the end"][kind]) == ["20"]
        assert len(found["in training"][kind]) == len(EPOCHS)
        assert 0 < found["opposed"][kind]["20"] < 1
        assert len(found["CKA"][kind]) == 8 and max(found["CKA"][kind]) <= 1
        assert list(found["line"][kind]) == [*STARTS[kind], "permuted copy"]
        for line in found["line"][kind].values():
            straight = np.interp(ALPHAS, (0, 1), (line["errors"][0], line["errors"][-1]))
            assert line["barrier"] == pytest.approx(np.max(line["errors"] - straight), abs=1e-3)
    run = open_run(runs["resnet20"])
    same = line_to(run, run.variables)
    assert same["barrier"] == pytest.approx(0, abs=1e-4)
    # The largest eigenvalue against the quotient of Rayleigh at a power iteration's end.
    matrix = hessian(run.model, run.variables, run.batch(256, "train", 3), mode=TRAIN)
    vector = np.random.default_rng(0).normal(size=matrix.shape[0]).astype(np.float32)
    for _ in range(60):
        vector = np.asarray(matrix @ vector)
        vector = vector / np.linalg.norm(vector)
    largest = float(vector @ np.asarray(matrix @ vector))
    edge = edge_of_stability(0.1, 0.9, nesterov=True)
    assert sharpness(run, run.variables, 0.1) == pytest.approx(largest / edge, rel=0.02)
