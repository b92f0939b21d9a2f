"""Costs of NNX modules, of functions, and of inputs by name; in every mode."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import (
    EVAL,
    TRAIN,
    Ghost,
    cost,
    count_macs,
    count_params,
    from_function,
    from_nnx,
    macs_by_layer,
    params_by_layer,
    stage_table,
)
from deepjax.errors import InputError
from tests import zoo


class Block(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.dense(x))


class Net(nnx.Module):
    """A convolution, a layer called twice, blocks under a transform, a head of several features."""

    def __init__(self, how):
        self.how, rngs = how, nnx.Rngs(0)
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.shared = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        if how == "scan":
            self.blocks = nnx.vmap(Block)(rngs.split(3))
        else:
            self.blocks = nnx.List([Block(rngs) for _ in range(3)])
        self.heads = nnx.LinearGeneral(4, (2, 3), rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.conv(x)).mean((1, 2))
        x = self.shared(self.shared(x))
        if self.how == "scan":
            run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.heads(run(x, self.blocks))
        kinds = {"remat": nnx.remat, "jit": nnx.jit, "plain": lambda call: call}
        for block in self.blocks:
            x = kinds[self.how](lambda block, x: block(x))(block, x)
        return self.heads(x)


# (parameters, multiply-adds, activation bytes) by hand, for images 5x5x2.
OUTSIDE = {
    "conv": (9 * 2 * 4 + 4, 25 * 9 * 2 * 4, 4 * 100),
    "norm": (8, 0, 4 * 100),
    "shared": (16, 2 * 16, 2 * 4 * 4),
    "heads": (4 * 6 + 6, 24, 4 * 6),
}
BLOCKS = {f"blocks/{i}": (0, 0, 16) for i in range(3)}
DENSE = {f"blocks/{i}/dense": (20, 16, 16) for i in range(3)}
STACKED = {"blocks": (0, 0, 48), "blocks/dense": (60, 48, 48)}


@pytest.mark.parametrize("how", ["plain", "remat", "jit", "scan"])
def test_layers_of_an_nnx_module_by_hand(how):
    network, variables = from_nnx(Net(how))
    rows = {
        row.layer: (row.params, row.macs, row.activation_bytes)
        for row in cost(network, (5, 5, 2)).layers
    }
    assert rows == OUTSIDE | (STACKED if how == "scan" else BLOCKS | DENSE)
    assert list(rows)[:3] == ["conv", "norm", "shared"] and list(rows)[-1] == "heads"
    sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
    assert count_params(network, (5, 5, 2)) == sum(sizes)
    stages = stage_table(network, (5, 5, 2))
    assert [row.name for row in stages] == ["conv", "norm", "shared", "blocks", "heads"]
    assert sum(row.macs for row in stages) == count_macs(network, (5, 5, 2)) == 1800 + 32 + 48 + 24


def test_parameters_of_a_function_have_their_paths():
    def net(params, x):
        layers, gain = params
        for layer in layers:
            x = x @ layer["w"]
        return x * gain

    layers = [{"w": jnp.ones((3, 3))} for _ in range(2)]
    network = from_function(net, params=(layers, jnp.ones(())))
    report = cost(network, (3,), examples=2)
    rows = {row.layer: (row.params, row.macs, row.activation_bytes) for row in report.layers}
    assert rows == {"": (1, 36, 24), "0/0": (9, 0, 0), "0/1": (9, 0, 0)}
    assert report.layers[0].bytes_moved == 2 * 4 * (6 + 9 + 6)
    assert params_by_layer(network, (3,)) == {"0/0": 9, "0/1": 9, "": 1}
    assert macs_by_layer(network, (3,)) == {"": 18}
    assert sum(row.macs for row in stage_table(network, (3,))) == 18
    more = from_function(net, params=([*layers, *layers], jnp.ones(())))
    assert network == more and count_params(more, (3,)) == 37 and count_macs(more, (3,)) == 36
    with pytest.raises(InputError, match=r"net is a function.*from_function\(function, params="):
        cost(from_function(net), (3,))


def test_inputs_by_name():
    both = {"tokens": jax.ShapeDtypeStruct((1, 5), jnp.int32), "images": (6, 6, 3)}
    report = cost(zoo.TwoInputs(), both)
    assert report.total.macs == 36 * 27 * 4 + 8 * 2
    assert report.inputs == "float32[1,6,6,3], int32[1,5]"

    class TakesDict(nn.Module):
        @nn.compact
        def __call__(self, batch):
            return nn.Dense(2)(batch["x"])

    assert count_macs(TakesDict(), {"x": jnp.ones((1, 4))}) == 8
    assert count_macs(TakesDict(), {"batch": {"x": jnp.ones((1, 4))}}) == 8
    with pytest.raises(InputError, match=r"float32\[1,4\], batch included; .*TwoInputs takes"):
        cost(zoo.TwoInputs(), {"images": (4,)})


def test_outputs_keep_the_order_of_their_keys():
    assert cost(zoo.Outputs(), (5,)).not_counted == ()


class Auxiliary(nn.Module):
    """A head that only training runs."""

    @nn.compact
    def __call__(self, x, train=False):
        auxiliary = nn.Dense(3, name="auxiliary")
        if train or self.is_initializing():
            auxiliary(x)
        return nn.Dense(2, name="head")(x)


def test_every_count_of_a_mode():
    modes = {EVAL: 8, TRAIN: 20, Ghost(2): 20}
    for mode, macs in modes.items():
        assert count_macs(Auxiliary(), (4,), mode=mode) == macs
        assert sum(macs_by_layer(Auxiliary(), (4,), mode=mode).values()) == macs
        assert cost(Auxiliary(), (4,), mode=mode).total.macs == macs
        stages = stage_table(Auxiliary(), (4,), mode=mode)
        assert [row.macs for row in stages] == [macs - 8, 8]
        assert stages[0].runs == mode.train and stages.mode == mode
    for call in (cost, count_macs, stage_table):
        with pytest.raises(InputError, match="no longer takes train=; use mode=EVAL or mode=TRAIN"):
            call(Auxiliary(), (4,), train=True)
        with pytest.raises(InputError, match="mode is True; allowed: EVAL, TRAIN or Ghost"):
            call(Auxiliary(), (4,), mode=True)


def test_results_print_a_table_and_take_a_title():
    report, stages = cost(Auxiliary(), (4,)), stage_table(Auxiliary(), (4,))
    assert report.summary()["MACs"] == stages.summary()["MACs"] == 8
    assert repr(report) == str(report) and "total" in repr(report)
    assert "<table>" in report._repr_html_()
    assert len(stages) == 2 and stages[1].name == "head" and [*stages] == list(stages.stages)
    assert stages.rows()[0] == {
        "stage": "auxiliary",
        "output": None,
        "params": 15,
        "macs": 0,
        "receptive_field": None,
        "stride": None,
        "runs": False,
        "not_counted": None,
    }
    assert repr(stages).splitlines()[0] == "StageTable: stages 2, params 25, MACs 8"
    for result in (report, stages):
        assert result.plot(title="Mine").get_title("left") == "Mine"
    assert "25 parameters" in stages.plot().get_title("left")
