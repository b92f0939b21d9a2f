"""The study of degradation: its measurements, and what the ladder of depths trains."""

import jax
import numpy as np
import pytest

from deepjax.analysis import init_variables
from deepjax.data import dataset_info, sample
from deepjax.models import create_model
from deepjax.study.ladder import DEPTHS, LADDER, LADDER_GPU, ladder_arm
from deepjax.study.quantity import error
from deepjax.training.config import train_config
from deepjax.training.network import model_from
from experiments.degradation import STUDY, log_ratio, sigmoid_norms, trend
from tests.study.results import arm, results


def test_the_ratio_leaves_the_classifier_out():
    norms = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 10.0, "e": 20.0, "f": 40.0, "head": 1e6}
    assert log_ratio(norms) == pytest.approx(-1.301, abs=1e-3)  # median(1, 2) / median(20, 40)


def test_gradients_of_sigmoids_vanish():
    """Glorot and Bengio 2010; the derivative of a sigmoid is at most 1/4."""
    norms = sigmoid_norms(sample(dataset_info("digits"), 8), seed=0, layers=9)
    assert [*norms][-1] == "head" and log_ratio(norms) < -2


def test_the_trend_is_in_points_for_each_doubling():
    arms = {f"plain{depth}": arm(0.1, 0.1 + 0.02 * np.log2(depth / 8)) for depth in DEPTHS}
    found = trend("plain").sample(results(arms), "test")
    np.testing.assert_allclose(found.by_seed, 2.0, atol=0.05)  # to whole images
    assert set(trend("plain").arms) == set(arms)
    assert error("plain8").unit == " points"


@pytest.mark.parametrize("kind", ["plain", "resnet"])
def test_eight_layers_are_the_formula_of_the_paper_with_one_block_a_stage(kind):
    """He et al. 2015, section 4.2: 6n + 2 layers; n = 1. As many convolutions and a classifier."""
    made = ladder_arm(kind, 8)
    config = train_config(made.model, **LADDER)
    model = model_from(config, made.make)
    params = init_variables(model, jax.random.key(0), (1, 14, 14, 1))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [path for path, _ in leaves if "kernel" in jax.tree_util.keystr(path)]
    assert len(kernels) == 8
    assert model.residual == create_model(f"cifar_{kind}20").residual  # pyright: ignore


def test_deeper_networks_are_those_of_the_registry():
    assert ladder_arm("plain", 44).model == "cifar_plain44" and ladder_arm("plain", 44).make is None
    assert STUDY.presets["small"].training == LADDER and STUDY.presets["gpu"].training == LADDER_GPU
