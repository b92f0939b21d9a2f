"""Networks and arguments of Python calls: accepted, or refused in one line that names them."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.errors import InputError
from deepjax.models import create_model, features
from deepjax.models.nnx import NnxInLinen
from deepjax.training import TrainConfig, compile_training, open_run, train

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


def logits_of(x, train, classes):
    """Layers that have two modes, in a compact module."""
    x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
    return nn.Dense(classes)(nn.Dropout(0.1, deterministic=not train)(x))


class TrainIsRequired(nn.Module):
    """Its switch of modes has no default."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train):
        return logits_of(x, train, self.num_classes)


class TrainsByDefault(nn.Module):
    """As flax's ImageNet example."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = True):
        return logits_of(x, train, self.num_classes)


class Counts(Own):
    """State that is no batch statistic."""

    @nn.compact
    def __call__(self, x, train=False):
        count = self.variable("stats", "count", lambda: jnp.zeros(()))
        if train:
            count.value += 1
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Noisy(Own):
    """Its random numbers are of a stream of their own."""

    @nn.compact
    def __call__(self, x, train=False):
        noise = jax.random.normal(self.make_rng("noise"), x.shape) if train else 0
        return nn.Dense(self.num_classes)((x + noise).reshape(len(x), -1))


class Sows(Own):
    """Intermediate values, in a collection of any name."""

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("norms", "input", jnp.linalg.norm(x))
        self.sow("features", "pixels", x)
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Step(nnx.Variable):
    """A variable of a kind of its own."""


class CountsInNNX(nnx.Module):
    """State that is no batch statistic, in NNX."""

    def __init__(self, num_classes, rngs):
        self.layer, self.count = nnx.Linear(64, num_classes, rngs=rngs), Step(jnp.zeros(()))

    def __call__(self, x):
        self.count[...] += 1
        return self.layer(x.reshape(len(x), -1))


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
        (Counts, "own/network has variables in 'stats', which a training does not keep"),
        (
            lambda num_classes, dtype: NnxInLinen(CountsInNNX, (("num_classes", num_classes),)),
            "own/network has variables in '[Ss]tep', which a training does not keep",
        ),
        (Noisy, r"own/network cannot be trained on images of \(8, 8, 1\): InvalidRngError.*noise"),
        (Pair, r"the network's output is \(Shape.*; allowed: logits \(240, 10\)"),
    ],
)
def test_a_network_of_one_s_own_that_does_not_fit_is_refused_in_a_line(make, said):
    with pytest.raises(InputError, match=said) as refused:
        compile_training(CONFIG, make=make)
    assert "\n" not in str(refused.value)


def without_dtype(network):
    return lambda num_classes, dtype: network(num_classes)


@pytest.mark.parametrize(
    "make", [without_dtype(TrainIsRequired), without_dtype(TrainsByDefault), Sows]
)
def test_networks_as_they_are_usually_written_are_trained(make, tmp_path):
    assert train(CONFIG, tmp_path, make=make).steps == 1
    found = open_run(tmp_path, make=make)
    logits = found.model.apply(found.variables, found.batch(4)["image"], train=False)
    assert logits.shape == (4, 10)


def test_a_network_that_fails_leaves_the_directory_free(tmp_path):
    for make in (Noisy, Pair):
        with pytest.raises(InputError):
            train(CONFIG, tmp_path, make=make)
        assert not (tmp_path / "config.json").exists()
    assert train(CONFIG, tmp_path, make=Own).steps == 1


def test_stages_that_a_network_sows_are_features():
    images = jnp.ones((2, 8, 8, 1))
    variables = Sows().init(jax.random.key(0), images)
    assert features(Sows(), variables, images, ["pixels"])["pixels"].shape == images.shape
    with pytest.raises(InputError, match=r"Own marks no stage; .* calls self.sow\("):
        features(Own(), variables, images)


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
