"""Networks without batch norm: what the arms are made of."""

import jax
import pytest

from deepjax.analysis import init_variables
from deepjax.study.arms.arm import arm_config
from deepjax.training.network import model_from
from experiments.normalizer_free import ARMS, LABELS, SCHEMES


@pytest.mark.parametrize("name", LABELS)
def test_only_the_reference_has_batch_norm_and_all_have_twenty_layers(name):
    config = arm_config(ARMS[name], "digits", {"width": 4})
    model = model_from(config, ARMS[name].make)
    shapes = jax.eval_shape(
        lambda: init_variables(model, jax.random.key(0), (1, *config.input_shape))
    )
    assert ("batch_stats" in shapes) == (name == "batch")
    sides = [leaf.shape[0] for leaf in jax.tree.leaves(shapes["params"]) if leaf.ndim == 4]
    assert sides.count(3) == 19  # and the classifier; NF-ResNet has projections of 1x1 too


def test_the_schemes_are_arms():
    assert set(SCHEMES) < set(ARMS)
