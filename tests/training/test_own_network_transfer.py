"""Training from weights with networks of one's own: a new last layer, frozen batch norms of NNX."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

from deepjax.data import dataset_info
from deepjax.errors import InputError
from deepjax.evaluation import EvalModel
from deepjax.evaluation.export.folder import Origin, export_network
from deepjax.models.nnx import NnxInLinen
from deepjax.training import compile_training, train, train_config
from deepjax.training.config_groups import TransferConfig
from deepjax.training.network import starting_weights
from deepjax.training.transfer.frozen_batch_norm import freeze_batch_norms

OPTIONS = {"steps": 1, "batch_size": 16, "augment": False}


class Plain(nn.Module):
    """Its last layer has no telling name."""

    num_classes: int = 10
    features: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(self.features)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


class Norms(nnx.Module):
    """A batch norm in the mode of the module, or of the call."""

    def __init__(self, num_classes, in_call=False, *, rngs):
        self.norm = nnx.BatchNorm(1, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(64, num_classes, rngs=rngs)
        self.in_call = in_call

    def __call__(self, x):
        x = self.norm(x, use_running_average=False) if self.in_call else self.norm(x)
        return self.linear(x.reshape(len(x), -1))


def of_nnx(**fields):
    fields.pop("dtype", None)
    return NnxInLinen(Norms, tuple(fields.items()))


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """Images like the digits, in 7 classes."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("seven") / "images.npz"
    arrays = {}
    for split in ("train", "val"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (28, 8, 8, 1), np.uint8)
        arrays[f"{split}_labels"] = np.arange(28) % 7
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    "make, last", [(Plain, "Dense_1"), (of_nnx, "network/linear")], ids=["linen", "nnx"]
)
def test_other_classes_give_a_new_last_layer_which_is_named(make, last, seven, tmp_path):
    train(train_config("own/net", **OPTIONS), tmp_path / "digits", make=make)
    tuned = train_config("own/net", seven, weights=str(tmp_path / "digits"), **OPTIONS)
    found = starting_weights(tuned, make)
    assert found.new == (last,)
    assert f", {last} newly initialised; mean and std of their training" in found.summary()
    kept = {"/".join(path[1:-1]) for path in found.leaves if path[0] == "params"}
    assert kept == {"Dense_0" if make is Plain else "network/norm"}
    assert train(tuned, tmp_path / "seven", make=make).steps == 1


def test_other_shapes_than_those_of_the_classes_are_refused(seven, tmp_path):
    train(train_config("own/net", **OPTIONS), tmp_path / "digits", make=Plain)
    tuned = train_config("own/net", seven, weights=str(tmp_path / "digits"), **OPTIONS)
    with pytest.raises(InputError, match=r"Dense_0/kernel is \(64, 4\), the network has \(64, 6\)"):
        starting_weights(tuned, lambda **fields: Plain(**fields, features=6))


def test_frozen_batch_norms_of_nnx_equal_evaluation_and_keep_their_averages():
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 1)) + 1
    network = of_nnx(num_classes=3)
    variables = jax.jit(network.init)(jax.random.key(1), images)
    frozen = freeze_batch_norms(network)
    logits, state = frozen.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, network.apply(variables, images), rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    moved, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
    assert not jnp.allclose(logits, moved, rtol=1e-2)


def test_statistics_that_move_all_the_same_are_refused():
    images = jnp.ones((8, 8, 8, 1))
    network = of_nnx(num_classes=3, in_call=True)
    variables = network.init(jax.random.key(1), images)
    with pytest.raises(InputError, match="norm of Norms uses the statistics of the batch"):
        freeze_batch_norms(network).apply(variables, images, train=True, mutable=["batch_stats"])


class OwnNorm(Plain):
    """A batch norm that is written out."""

    @nn.compact
    def __call__(self, x, train=False):
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(x.shape[-1:]))
        if train and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * x.mean((0, 1, 2))
        return nn.Dense(self.num_classes)((x - mean.value[None, None, None]).reshape(len(x), -1))


class NnxNorm(Plain):
    """A batch norm of NNX in a linen network."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = nnx.bridge.ToLinen(nnx.BatchNorm, args=(1,), metadata_fn=None, name="norm")
        x = norm(x, use_running_average=not train)
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class LinenNorm(Plain):
    """A batch norm of flax."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


@pytest.mark.parametrize("make", [OwnNorm, NnxNorm, Plain])
def test_freezing_that_has_no_effect_is_refused(make):
    frozen = train_config("own/net", freeze_batch_norm=True, **OPTIONS)
    with pytest.raises(InputError) as error:
        compile_training(frozen, make=make)
    assert str(error.value).startswith(
        "freeze_batch_norm is True; allowed: False for own/net, which has no batch norm"
        if make is Plain
        else "freeze_batch_norm is True, and training own/net changes "
        + ("mean;" if make is OwnNorm else "norm/mean, norm/var;")
    )


@pytest.mark.parametrize("make", [LinenNorm, of_nnx])
def test_batch_norms_that_freezing_covers_are_trained(make):
    frozen = train_config("own/net", freeze_batch_norm=True, **OPTIONS)
    programs = compile_training(frozen, make=make)
    state = programs.fresh_state(frozen)
    before = jax.tree.map(np.asarray, state.batch_stats)
    assert jax.tree.leaves(before)
    state, _ = programs.train_step(state, next(iter(programs.batches(frozen))))
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, before)


def test_scanned_blocks_of_ours_are_frozen_and_a_single_value_a_channel_is_no_matter():
    """The refusal of single values is of statistics of the batch, which frozen norms do not use."""
    options = {"model_args": ("scan=true",), "width": 4, "bn_scope": 1}
    frozen = train_config("resnet18", freeze_batch_norm=True, **OPTIONS, **options)
    assert compile_training(frozen).config == frozen
    with pytest.raises(InputError, match="batch normalisation has one value a channel"):
        compile_training(dataclasses.replace(frozen, transfer=TransferConfig()))


class Listed(nnx.Module):
    """Its layers are in a list."""

    def __init__(self, num_classes, rngs):
        self.layers = nnx.List(
            [nnx.Linear(64, 4, rngs=rngs), nnx.Linear(4, num_classes, rngs=rngs)]
        )

    def __call__(self, x):
        first, last = self.layers
        return last(nnx.relu(first(x.reshape(len(x), -1))))


def test_layers_in_lists_are_read_from_a_run(seven, tmp_path):
    def make(**fields):
        return NnxInLinen(Listed, (("num_classes", fields["num_classes"]),))

    train(train_config("own/net", **OPTIONS), tmp_path / "digits", make=make)
    tuned = train_config("own/net", seven, weights=str(tmp_path / "digits"), **OPTIONS)
    assert starting_weights(tuned, make).new == ("network/layers/1",)
    assert train(tuned, tmp_path / "seven", make=make).steps == 1


def test_an_exported_network_of_one_s_own_starts_a_training(tmp_path):
    """Under the paths of its variables, without names of PyTorch."""
    digits = dataset_info("digits")
    network = Plain(dtype=jnp.float32)
    variables = network.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))
    member = EvalModel("own/net", "random", network, variables, digits, 8)
    export_network(member, Origin({"num_classes": 10}), tmp_path / "out")
    tuned = train_config("own/net", weights=str(tmp_path / "out"), **OPTIONS)
    found = starting_weights(tuned, Plain)
    assert found.new == ()
    for path, leaf in flatten_dict(variables).items():
        np.testing.assert_array_equal(found.leaves[path], leaf)
    with pytest.raises(
        InputError, match="of own/net num_classes=10; allowed: weights of own/other"
    ):
        starting_weights(dataclasses.replace(tuned, model="own/other"), Plain)
