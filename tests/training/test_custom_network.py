"""Networks and arguments of Python calls: accepted, or refused in one line that names them."""

from typing import Any

import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.errors import InputError
from deepjax.models import create_model
from deepjax.training import TrainConfig, compile_training, train

CONFIG = TrainConfig("own/network", steps=1, batch_size=240)


class Own(nn.Module):
    """A network that is right."""

    num_classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class WithoutFields(nn.Module):
    """Its classes cannot be given."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(x.reshape(len(x), -1))


class WithoutTrain(Own):
    """It has no switch of modes."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class SevenLogits(Own):
    """As many logits as it likes."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(7)(x.reshape(len(x), -1))


class Pair(Own):
    """Logits and something else."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1)), jnp.zeros(())


class OfNNX(nnx.Module):
    """A module of the other kind."""

    def __init__(self, num_classes, dtype=None):
        self.layer = nnx.Linear(64, num_classes, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "make, said",
    [
        (
            WithoutFields,
            "make, WithoutFields, does not take the fields of the run .*'num_classes'.*; "
            "allowed: one that takes num_classes, d",
        ),
        (
            Own(),
            "make is an object of class Own; "
            "allowed: a linen module's class, or a function of num_classes, dtype",
        ),
        (OfNNX, "make, OfNNX, gives OfNNX, an NNX module; allowed: a flax.linen module"),
        (
            lambda **fields: None,
            "make, <lambda>, gives an object of class NoneType; allowed: a flax.linen module",
        ),
        (WithoutTrain, r"WithoutTrain.__call__ does not take \(images, train=True\)"),
        (SevenLogits, r"the network's output is \(240, 7\); allowed: logits \(240, 10\)"),
        (Pair, r"the network's output is \(Shape.*; allowed: logits \(240, 10\)"),
    ],
)
def test_a_network_of_one_s_own_that_does_not_fit_is_refused_in_a_line(make, said):
    with pytest.raises(InputError, match=said) as refused:
        compile_training(CONFIG, make=make)
    assert "\n" not in str(refused.value)


def test_paths_may_be_text(tmp_path):
    config = TrainConfig("cifar_plain20", width=2, steps=1, batch_size=240)
    assert train(config, str(tmp_path / "run")).steps == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (({"model": "vgg11"}, "run"), "config is {'model': 'vgg11'}; allowed: a TrainConfig"),
        ((CONFIG, None), "out is None; allowed: a path"),
        ((CONFIG, b"run"), "out is b'run'; allowed: a path"),
        ((CONFIG, "run", {"save_every": 1}), "options is {'save_every': 1}; allowed: a RunOptions"),
    ],
)
def test_arguments_of_other_kinds_are_refused_in_a_line(arguments, said):
    with pytest.raises(InputError, match=said):
        train(*arguments)


@pytest.mark.parametrize("classes", [7.0, 0, -1, "5", True, None])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    with pytest.raises(
        InputError, match=f"num_classes is {classes!r}; allowed: an integer, 1 or more"
    ):
        create_model("resnet18", num_classes=classes)
