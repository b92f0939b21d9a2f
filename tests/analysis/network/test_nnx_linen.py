"""Linen modules in nnx.bridge.ToNNX: every result is that of the linen network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import (
    EVAL,
    TRAIN,
    cka,
    cost,
    cross_entropy,
    first_nonfinite_layer,
    from_nnx,
    hessian_trace,
    lesions,
    loss_line,
    per_example_gradients,
    trace,
)
from deepjax.analysis.network.module import apply_module
from deepjax.errors import InputError
from deepjax.models import create_model, to_nnx

IMAGES = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
BATCH = (IMAGES, jnp.arange(4) * 2)
LINEN = create_model("cifar_resnet20", stages=(1, 1, 1), width=4, num_classes=10)
NETWORK, VARIABLES = from_nnx(to_nnx(LINEN, IMAGES, nnx.Rngs(0)))
ALPHAS = (-0.1, 0.0, 0.1)
RESULTS = {
    "trace": lambda *given: trace(*given, BATCH, mode=TRAIN),
    "trace in evaluation": lambda *given: trace(*given, BATCH, mode=EVAL),
    "hessian_trace": lambda *given: hessian_trace(*given, BATCH, probes=2),
    "loss_line": lambda *given: loss_line(*given, BATCH, given[1]["params"], alphas=ALPHAS),
    "per_example_gradients": lambda *given: per_example_gradients(*given, BATCH),
    "lesions": lambda *given: lesions(*given, BATCH, draws=2),
    "cka": lambda *given: cka(*given, IMAGES),
}


def assert_same_rows(found, wanted, rtol=1e-4):
    assert len(found.rows()) == len(wanted.rows()) > 0
    for one, other in zip(found.rows(), wanted.rows(), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, float):
                np.testing.assert_allclose(one[name], value, rtol=rtol, atol=1e-6)
            else:
                assert one[name] == value


@pytest.mark.parametrize("name", RESULTS)
def test_rows_of_a_network_of_deepjax(name):
    assert_same_rows(RESULTS[name](NETWORK, VARIABLES), RESULTS[name](LINEN, VARIABLES))


def test_costs_of_a_network_of_deepjax():
    assert cost(NETWORK, (8, 8, 3)).rows() == cost(LINEN, (8, 8, 3)).rows()


def test_the_mode_text_does_not_mention_random_streams():
    text = trace(NETWORK, VARIABLES, BATCH, mode=EVAL).mode_text
    assert text == "evaluation mode (train=False, deterministic=True)"


class Wrapped(nn.Module):
    """Layers under nn.jit, nn.remat and nn.scan, and dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.jit(nn.Dense)(5, name="jitted")(x)
        x = nn.remat(nn.Dense)(5, name="saved")(jnp.tanh(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        scanned = nn.scan(
            lambda module, x, _: (jnp.tanh(module(x)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = scanned(nn.Dense(5, name="scanned"), x, None)
        return nn.BatchNorm(use_running_average=not train)(x)


X, Y = jax.random.normal(jax.random.key(1), (8, 5)), jnp.arange(8) % 3


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_a_plain_bridge_with_transforms_of_linen(mode):
    """Also the switch `train` of the linen module, and the masks of its dropout."""
    bridge = nnx.bridge.ToNNX(Wrapped(), rngs=nnx.Rngs(0))
    network, variables = from_nnx(nnx.bridge.lazy_init(bridge, X))
    for _ in range(2):  # nn.jit has a trace of the first run
        found, wanted = (
            trace(model, variables, (X, Y), mode=mode, key=jax.random.key(5))
            for model in (network, Wrapped())
        )
        assert found.mode_text == wanted.mode_text
        assert_same_rows(found, wanted)


class Backbone(nnx.Module):
    """A linen module below the top, under a transform by the field."""

    def __init__(self, kind, rngs):
        self.kind = kind
        self.inner = nnx.bridge.ToNNX(nn.Dense(5), rngs=rngs)
        nnx.bridge.lazy_init(self.inner, X)
        self.drop = nnx.bridge.ToNNX(nn.Dropout(0.5, deterministic=False), rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        call = {"jit": nnx.jit, "remat": nnx.remat, "plain": lambda call: call}[self.kind]
        return self.head(self.drop(call(lambda inner, x: inner(x))(self.inner, x)))


def plain_loss(params):
    x = X @ params["inner"]["kernel"] + params["inner"]["bias"][None]
    x = x @ params["head"]["kernel"] + params["head"]["bias"][None]
    return cross_entropy(x, (X, Y))


@pytest.mark.parametrize("kind", ["plain", "jit", "remat"])
def test_layers_below_the_top(kind):
    network, variables = from_nnx(Backbone(kind, nnx.Rngs(0)))
    report = trace(network, variables, (X, Y), mode=EVAL)
    assert report.mode_text == "evaluation mode (deterministic=True)"
    rows = {row.layer: row for row in report.layers}
    assert list(rows) == ["inner", "drop", "head", ""]
    wanted = optax.tree.norm(jax.grad(plain_loss)(variables["params"])["inner"])
    assert rows["inner"].parameter_gradient_norm == pytest.approx(float(wanted), rel=1e-5)
    first, other, again = (
        trace(network, variables, (X, Y), mode=TRAIN, key=jax.random.key(i)).loss for i in (0, 1, 0)
    )
    assert first == again != other


class Trained(nn.Module):
    """Batch norm that is in training in every mode."""

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=None)
        return nn.Dense(3)(norm(x, use_running_average=False))


class Updating(nnx.Module):
    """Updates the statistics of a linen module in every mode."""

    def __init__(self, rngs):
        self.inner = nnx.bridge.lazy_init(nnx.bridge.ToNNX(Trained(), rngs=rngs), X)

    def __call__(self, x):
        return self.inner(x, mutable=["batch_stats"])


@pytest.mark.parametrize("kind", ["linen", "plain", "updating"])
def test_batch_norm_in_training_is_refused_in_evaluation(kind):
    if kind == "linen":
        network, variables = Trained(), Trained().init(jax.random.key(0), X)
    else:
        module = Updating(nnx.Rngs(0))
        network, variables = from_nnx(module if kind == "updating" else module.inner)
    with pytest.raises(InputError, match="evaluation writes the batch statistics"):
        trace(network, variables, (X, Y), mode=EVAL)
    _, changed = apply_module(network, variables, (X, Y), train=True)
    mean = jax.tree.leaves(changed["batch_stats"])[0]
    np.testing.assert_allclose(mean, 0.01 * X.mean(0), rtol=1e-4, atol=1e-6)


class Stack(nnx.Module):
    """Two blocks with linen dropout, under nnx.scan."""

    def __init__(self, rngs):
        self.blocks = nnx.vmap(self.block)(rngs.split(2))

    @staticmethod
    def block(rngs):
        module = nn.Sequential([nn.Dense(5), nn.Dropout(0.5, deterministic=False)])
        return nnx.bridge.lazy_init(nnx.bridge.ToNNX(module, rngs=rngs), X)

    def __call__(self, x):
        def run(x, block):
            y = block(x)
            return x, y

        return nnx.scan(run, in_axes=(nnx.Carry, 0))(x, self.blocks)[1]


def test_scanned_layers_have_masks_of_their_own():
    network, variables = from_nnx(Stack(nnx.Rngs(0)))
    outputs, _ = apply_module(network, variables, (X, None), train=True)
    masks = outputs == 0
    assert 0.2 < masks.mean() < 0.8 and (masks[0] != masks[1]).any()
    kept, _ = apply_module(network, variables, (X, None), train=False)
    dense = variables["params"]["blocks"]["layers_0"]
    wanted = jnp.einsum("nf,lfg->lng", X, dense["kernel"]) + dense["bias"][:, None]
    np.testing.assert_allclose(kept, wanted, rtol=1e-5, atol=1e-5)
    squares = trace(network, variables, (X, Y), mode=EVAL, loss=lambda y, _: jnp.mean(y**2))
    rows = {row.layer: row for row in squares.layers}
    assert rows["blocks/layers_0"].runs == 2
    assert first_nonfinite_layer(network, variables, (X, Y)) is None
