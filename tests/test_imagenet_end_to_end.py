"""End to end on ImageNet-like photographs.

Each family in each precision, from preparation to score.

`prepare/test_prepare_archives.py` shows that these data are what tfds's builder makes of the
archives, to the byte. Resume, sizes and two processes: `tests/training/test_encoded_training.py`;
every protocol: `tests/evaluation/test_each_protocol.py`.
"""

import functools
import math

import jax
import pytest

from deepjax.data import load_split
from deepjax.evaluation import EvalModel, compute_metrics, predict, resolve_protocol
from deepjax.evaluation.images import read_labels
from deepjax.models import create_model
from deepjax.training import RunOptions, compile_training, open_run, train
from deepjax.training.config import train_config
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from deepjax.training.metrics.metrics_log import read_rows
from tests.data.archives import small_imagenet

NETWORKS = {  # pixels, weight of the auxiliary heads (Inception-v3's needs 299 pixels), fields
    "vgg11_bn": (32, 0.0, {"width": 2}),
    "googlenet": (64, 0.3, {"width": 4}),
    "inception_v3": (96, 0.0, {"width": 4}),
    "resnet50": (64, 0.0, {"width": 4}),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return small_imagenet(folder, train=32, validation=9), RunOptions(data_dir=str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps_and_a_score(name, precision, prepared, tmp_path):
    dataset, options = prepared
    size, weight, fields = NETWORKS[name]
    make = functools.partial(create_model, name, **fields)
    config = train_config(
        f"own/{name}",
        dataset.name,
        steps=2,
        batch_size=16,
        image_size=size,
        precision=precision,
        auxiliary_weight=weight,
    )
    train(config, tmp_path, options, programs=compile_training(config, options, make=make))
    final = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert (final["step"], final["test_images"], final["train_images"]) == (2, 9, 9)
    assert (
        math.isfinite(final["test_loss"])
        and 0 <= final["test_top5_error"] <= final["test_error"] <= 1
    )

    run = open_run(tmp_path, data_dir=options.data_dir, make=make)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.variables["params"])} == {"float32"}
    member, split = (
        EvalModel(name, "trained", run.model, run.variables, dataset, size),
        load_split(dataset, "test", options.data_dir),
    )
    scores = predict(
        member, split, resolve_protocol("1-crop", name, size), Partitioner(make_mesh()), 16
    )
    found = compute_metrics(scores, read_labels(split), dataset)
    assert (found.images, found.counted, found.not_finite) == (9, 9, 0)
