"""State of NNX modules: plain arrays, writes in evaluation, sown values, and what flax keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import variablelib

from deepjax.analysis import EVAL, TRAIN, cross_entropy, from_nnx, loss_contributions, trace
from deepjax.analysis.network.module import apply_module
from deepjax.errors import InputError
from tests.analysis.nnx_networks import Transformed

X = jax.random.normal(jax.random.key(1), (8, 5))
Y = jnp.arange(8) % 3
LIFTS = {"plain": lambda call: call, "jit": nnx.jit, "remat": nnx.remat}


class Scaled(nnx.Module):
    """Arrays and a number that are in no nnx.Variable."""

    def __init__(self, rngs):
        self.mean, self.scale, self.power = np.ones(5), 2 * jnp.ones(5), nnx.data(2.0)
        self.dense = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense((self.scale * (x - self.mean)) ** self.power)


def test_plain_arrays_are_constants():
    network, variables = from_nnx(Scaled(nnx.Rngs(0)))
    assert sorted(variables["constants"]) == ["mean", "power", "scale"]
    assert list(variables["params"]) == ["dense"]

    def loss(params):
        outputs = (2 * (X - 1)) ** 2 @ params["kernel"] + params["bias"][None]
        return cross_entropy(outputs, (X, Y))

    wanted, gradient = jax.value_and_grad(loss)(variables["params"]["dense"])
    for mode in (EVAL, TRAIN):
        with jax.numpy_rank_promotion("allow"):
            report = trace(network, variables, (X, Y), mode=mode)
        assert report.loss == pytest.approx(float(wanted), rel=1e-6)
        norm = np.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        assert report.summary()["gradient norm"] == pytest.approx(float(norm), rel=1e-5)
    assert "constants" not in report.mode_text
    assert network == from_nnx(Scaled(nnx.Rngs(1)))[0]


class Normed(nnx.Module):
    """Batch norm, a counter that does not count in evaluation, and dropout."""

    def __init__(self, kind, average, rngs):
        self.kind, self.average, self.deterministic = kind, average, False
        self.norm, self.head = nnx.BatchNorm(5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
        self.dropout, self.count = nnx.Dropout(0.5, rngs=rngs), nnx.Cache(jnp.zeros(()))

    def __call__(self, x):
        return LIFTS[self.kind](Normed.run)(self, x)

    def run(self, x):
        if not self.deterministic:
            self.count[...] += 1.0
        return self.head(self.dropout(self.norm(x, use_running_average=self.average)))


@pytest.mark.parametrize("kind", LIFTS)
def test_batch_norm_that_is_always_in_training_is_refused(kind):
    network, variables = from_nnx(Normed(kind, False, nnx.Rngs(0)))
    with pytest.raises(InputError, match="evaluation writes the batch statistics"):
        trace(network, variables, (X, Y), mode=EVAL)
    trace(network, variables, (X, Y), mode=TRAIN)


@pytest.mark.parametrize("kind", LIFTS)
def test_variables_that_a_transform_returns_are_not_written(kind):
    """Neither refused nor in the text of the mode, nor is the random stream."""
    network, variables = from_nnx(Normed(kind, None, nnx.Rngs(0)))
    report = trace(network, variables, (X, Y), mode=EVAL)
    assert report.mode_text == "evaluation mode (deterministic=True, use_running_average=True)"
    outputs, changed = apply_module(network, variables, (X, Y), train=True)
    assert changed["cache"]["count"] == 1 and outputs.shape == (8, 3)
    assert jnp.abs(changed["batch_stats"]["norm"]["mean"]).max() > 0


class Counter(nnx.Module):
    """Counts its calls, also in evaluation."""

    def __init__(self, rngs):
        self.dense, self.count = nnx.Linear(5, 3, rngs=rngs), nnx.Cache(jnp.zeros(()))

    def __call__(self, x):
        self.count[...] += 1.0
        return self.dense(x)


def test_a_counter_is_written_in_evaluation():
    network, variables = from_nnx(Counter(nnx.Rngs(0)))
    assert "writes the collection 'cache'" in trace(network, variables, (X, Y), mode=EVAL).mode_text
    _, changed = apply_module(network, variables, (X, Y), train=False)
    assert changed["cache"]["count"] == 1


def subclasses(kind):
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


@pytest.mark.parametrize("kind", ["plain", "jit", "scan", "remat"])
def test_further_shapes_make_no_further_classes(kind):
    network, variables = from_nnx(Transformed(kind, nnx.Rngs(0)))
    reports = [trace(network, variables, (X[:2], Y[:2]))]
    before = len(subclasses(nnx.Module))
    for count in (3, 4):
        reports.append(trace(network, variables, (X[:count], Y[:count])))
    assert len(subclasses(nnx.Module)) == before
    for report in reports[1:]:
        assert [row.layer for row in report.layers] == [row.layer for row in reports[0].layers]
        assert all(row.runs for row in report.layers if row.layer != "blocks")


class NoPytree(nnx.Module, pytree=False):
    """Its lists may be plain ones."""

    def __init__(self, rngs):
        self.layers = [nnx.Linear(5, 3, rngs=rngs)]

    def __call__(self, x):
        return nnx.jit(lambda module, x: module.layers[0](x))(self, x)


def test_a_module_that_is_no_pytree():
    report = trace(*from_nnx(NoPytree(nnx.Rngs(0))), (X, Y))
    assert [row.layer for row in report.layers if row.runs] == ["layers/0", ""]


@nnx.jit
def call_jitted(layer, x):
    return layer(x)


class Jitted(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return call_jitted(self.dense, x)


def test_earlier_traces_of_a_jitted_function_are_not_used():
    """They would have no measurements of the layer, or those of another call."""
    network, variables = from_nnx(Jitted(nnx.Rngs(0)))
    apply_module(network, variables, (X, Y), train=False)
    for mode in (EVAL, TRAIN, EVAL):
        layers = trace(network, variables, (X, Y), mode=mode).layers
        assert [row.layer for row in layers if row.runs] == ["dense", ""]


class Headed(nnx.Module):
    """Sows the logits of another head by the collection's name, or by a class."""

    def __init__(self, kind, rngs):
        self.kind = kind
        self.head, self.other = nnx.Linear(5, 3, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        self.sow(self.kind, "other", self.other(x))
        return self.head(x)


def test_names_of_sown_variables_stay_free(monkeypatch):
    monkeypatch.setattr(variablelib, "VariableTypeCache", dict(variablelib.VariableTypeCache))
    variablelib.VariableTypeCache.pop("auxiliary", None)
    network, variables = from_nnx(Headed("auxiliary", nnx.Rngs(0)))
    before = dict(variablelib.VariableTypeCache)
    first = loss_contributions(network, variables, (X, Y))
    assert before == variablelib.VariableTypeCache

    class Aux(nnx.Variable):
        pass

    nnx.register_variable_name("auxiliary", Aux)
    found = [first]
    for kind in ("auxiliary", Aux):
        network, _ = from_nnx(Headed(kind, nnx.Rngs(0)))
        found.append(loss_contributions(network, variables, (X, Y)))
    other = variables["params"]["other"]
    wanted = cross_entropy(X @ other["kernel"] + other["bias"][None], (X, Y))
    for each in found:
        assert each.losses["other"] == pytest.approx(float(wanted), rel=1e-5)
