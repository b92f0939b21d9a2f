"""Training from weights with networks of one's own: a new last layer, frozen batch norms of NNX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.errors import InputError
from deepjax.models.nnx import NnxInLinen
from deepjax.training import train, train_config
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
    assert found.summary().endswith(f", {last} newly initialised")
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
