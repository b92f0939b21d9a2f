"""Auxiliary heads: what is read off the gradients of the losses, layer by layer."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from deepjax.analysis import TRAIN
from deepjax.analysis.gradients.auxiliary_losses import LossContribution, LossContributions
from deepjax.models import create_model
from deepjax.models.googlenet import AUXILIARY, TABLE
from experiments.auxiliary_heads import HIGH, LOW, STAGES, head_gradients


def test_fractions_and_cosines_are_gathered_by_stage():
    """Heads are summed, layers averaged; the heads' own layers belong to no stage."""
    rows = []
    given = {"stem_conv1": 0.2, "auxiliary4a/logits": 1.0, "head": 0.0}
    given |= {f"{stage}/conv1x1": 0.1 if stage in LOW else 0.0 for stage in STAGES[1:]}
    given["inception3a/conv3x3"] = 0.05
    for layer, fraction in given.items():
        rows.append(LossContribution(layer, "main", 1.0, 1 - 2 * fraction, 1.0))
        cosine = 0.5 if fraction else math.nan
        rows += [LossContribution(layer, head, 1.0, fraction, cosine) for head in ("4a", "4d")]
    found = head_gradients(LossContributions(TRAIN, "", "", {}, {}, tuple(rows)))
    assert found["stages"] == pytest.approx([0.4, 0.15, 0.2, 0.2, *[0.0] * 6])
    assert found["below"] == pytest.approx((0.4 + 0.2 + 0.1 + 0.2 + 0.2) / 5)
    assert found["above"] == 0.0
    assert found["cosine"] == 0.5


def test_stages_are_those_of_the_network():
    """Every layer but those of the heads is in one stage; the heads are on the last low one on."""
    model = create_model("googlenet", num_classes=10, width=4)
    images = jnp.zeros((1, 28, 28, 1))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    modules = {name for name in variables["params"] if not name.startswith("auxiliary")}
    for name in modules:
        assert sum(name.startswith(stage) for stage in (*STAGES, "head")) == 1
    assert [stage for stage in TABLE if stage.startswith("inception")] == list(STAGES[1:])
    first, last = (STAGES.index(f"inception{module}") for module in AUXILIARY)
    assert (STAGES[: first + 1], (*STAGES[last + 1 :], "head")) == (LOW, HIGH)
