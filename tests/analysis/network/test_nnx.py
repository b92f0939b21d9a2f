"""NNX modules: what instruments see equals the same network in linen, and plain nnx.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from deepjax.analysis import (
    EVAL,
    TRAIN,
    Ghost,
    cost,
    cross_entropy,
    effective_field,
    from_nnx,
    hessian_trace,
    hvp,
    lesions,
    noise_scale,
    ntk,
    path_lengths,
    per_example_gradients,
    signal_propagation,
    top_eigenvalues,
    trace,
)
from deepjax.analysis.network.module import apply_module, init_variables
from deepjax.errors import InputError
from deepjax.models import create_model
from tests.analysis.nnx_networks import Mlp, ResNet20, Transformed, unstacked

X = jax.random.normal(jax.random.key(1), (8, 5))
Y = jnp.arange(8) % 3
IMAGES = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
BATCH = (IMAGES, jnp.arange(4) * 2)
LINEN = create_model("cifar_resnet20", width=4)
VARIABLES = init_variables(LINEN, jax.random.key(0), (1, 8, 8, 3))
NETWORK, _ = from_nnx(ResNet20(4, nnx.Rngs(0)))


def test_variables_have_the_structure_of_linens():
    _, variables = from_nnx(ResNet20(4, nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, dict(VARIABLES))


RESULTS = {
    "trace": lambda *given: trace(*given, BATCH, mode=TRAIN),
    "trace in evaluation": lambda *given: trace(*given, [BATCH, BATCH], mode=EVAL),
    "trace of ghost batches": lambda *given: trace(*given, BATCH, mode=Ghost(2)),
    "eigenvalues": lambda *given: top_eigenvalues(*given, BATCH, 2, steps=6, mode=TRAIN),
    "trace of the Hessian": lambda *given: hessian_trace(*given, BATCH, probes=2),
    "per-example gradients": lambda *given: per_example_gradients(*given, BATCH),
    "noise scale": lambda *given: noise_scale(*given, BATCH, small=1),
    "ntk": lambda *given: ntk(*given, IMAGES[:3]),
    "lesions": lambda *given: lesions(*given, BATCH, draws=2),
    "paths": lambda *given: path_lengths(*given, BATCH, samples=2),
    "signal": lambda *given: signal_propagation(*given, IMAGES),
    "field": lambda *given: effective_field(*given, IMAGES, layers="stage1_block2"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_resnet20_written_both_ways(name):
    """Within the rounding of convolutions that are lowered in different ways."""
    instrument = RESULTS[name]
    found, wanted = instrument(NETWORK, VARIABLES), instrument(LINEN, VARIABLES)
    assert len(found.rows()) == len(wanted.rows()) > 0
    for one, other in zip(found.rows(), wanted.rows(), strict=True):
        assert one.keys() == other.keys()
    for name in wanted.rows()[0]:
        one, other = ([row[name] for row in each.rows()] for each in (found, wanted))
        if not any(isinstance(value, float) for value in other):
            assert one == other
            continue
        one, other = (np.array(values, float) for values in (one, other))  # None becomes NaN
        scale = np.nanmax(np.abs(other), initial=0.0)
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4 * scale)


def test_costs_of_resnet20_by_layer():
    found, wanted = (cost(model, (8, 8, 3)) for model in (NETWORK, LINEN))
    assert found.total.macs == wanted.total.macs and found.total.params == wanted.total.params
    one, other = (
        {row.layer: (row.params, row.macs) for row in each.layers if row.params or row.macs}
        for each in (found, wanted)
    )
    assert one == other


def mean_loss(module):
    return cross_entropy(module(X), (X, Y))


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_gradients_are_those_of_nnx(mode):
    """A list of modules, a shared module, batch statistics; dropout is off in both."""
    module = Mlp(nnx.Rngs(3))
    module.dropout.rate = 0.0
    network, variables = from_nnx(module)
    module.train() if mode.train else module.eval()
    loss, gradient = nnx.value_and_grad(mean_loss)(module)
    report = trace(network, variables, (X, Y), mode=mode)
    assert report.loss == pytest.approx(float(loss), rel=1e-6)
    wanted = np.linalg.norm(ravel_pytree(nnx.to_pure_dict(gradient))[0])
    assert report.summary()["gradient norm"] == pytest.approx(float(wanted), rel=1e-5)
    rows = {row.layer: row for row in report.layers}
    assert rows["layers/0"].runs == 2  # also called as `shared`


def test_dropout_follows_the_key_and_the_module_is_not_changed():
    module = Mlp(nnx.Rngs(3))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    network, variables = from_nnx(module)
    keys = [jax.random.key(i) for i in (0, 1, 0)]
    first, second, again = (
        trace(network, variables, (X, Y), mode=TRAIN, key=key).loss for key in keys
    )
    assert first == again != second
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    text = trace(network, variables, (X, Y), mode=EVAL).mode_text
    assert text == "evaluation mode (deterministic=True, use_running_average=True)"
    _, changed = apply_module(network, variables, (X, Y), train=True)
    assert not np.allclose(changed["batch_stats"]["norm"]["mean"], 0)


def test_an_equal_network_does_not_recompile():
    first, _ = from_nnx(Mlp(nnx.Rngs(0)))
    second, _ = from_nnx(Mlp(nnx.Rngs(1)))
    assert first == second and hash(first) == hash(second)
    assert first != from_nnx(ResNet20(4, nnx.Rngs(0)))[0]


@pytest.mark.parametrize("kind", ["scan", "remat", "jit"])
def test_transforms_of_nnx(kind):
    """The rows of the layers under a transform, and a Hessian product through it."""
    scanned, variables = from_nnx(Transformed("scan", nnx.Rngs(0)))
    plain, _ = from_nnx(Transformed("plain", nnx.Rngs(0)))
    network, given = from_nnx(Transformed(kind, nnx.Rngs(0)))[0], unstacked(variables)
    wanted = trace(plain, given, (X, Y))
    if kind == "scan":
        network, given = scanned, variables
    found = trace(network, given, (X, Y))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert found.summary()["gradient norm"] == pytest.approx(
        wanted.summary()["gradient norm"], rel=1e-5
    )
    rows = {row.layer: row for row in found.layers if row.runs}
    other = [row for row in wanted.layers if row.layer.endswith("dense")]
    if kind == "scan":
        assert rows["blocks/dense"].runs == 3
        norms = np.linalg.norm([row.gradient_norm for row in other])
        assert rows["blocks/dense"].gradient_norm == pytest.approx(norms, rel=1e-4)
    else:
        for row in other:
            assert rows[row.layer].gradient_norm == pytest.approx(row.gradient_norm, rel=1e-4)
    vector = jax.tree.map(jnp.ones_like, given["params"])
    product = ravel_pytree(hvp(network, given, (X, Y), vector)["head"])[0]
    plain_vector = jax.tree.map(jnp.ones_like, unstacked(variables)["params"])
    direct = hvp(plain, unstacked(variables), (X, Y), plain_vector)["head"]
    np.testing.assert_allclose(product, ravel_pytree(direct)[0], rtol=1e-3, atol=1e-5)


class Own(nnx.Module):
    """A mode argument and a stream with names of their own."""

    def __init__(self, rngs):
        self.dense, self.rngs = nnx.Linear(5, 3, rngs=rngs), rngs

    def __call__(self, x, noisy=True):
        noise = jax.random.normal(self.rngs.noise(), x.shape) if noisy else 0.0
        return self.dense(x + noise)


def test_a_mode_argument_and_a_stream_of_any_name():
    network, variables = from_nnx(Own(nnx.Rngs(0, noise=1)), mode_argument="noisy")
    quiet = trace(network, variables, (X, Y), mode=EVAL)
    kernel, bias = variables["params"]["dense"]["kernel"], variables["params"]["dense"]["bias"]
    wanted = cross_entropy(X @ kernel + bias[None], (X, Y))
    assert quiet.loss == pytest.approx(float(wanted), rel=1e-6)
    assert "noise" not in quiet.mode_text
    noisy, _ = from_nnx(Own(nnx.Rngs(0, noise=1)))
    text = trace(noisy, variables, (X, Y), mode=EVAL).mode_text
    assert "draws from the random stream 'noise' in evaluation" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_nnx(Mlp), "module is a ModuleMeta; allowed: an instance"),
        (lambda: from_nnx(nnx.Rngs(0)), "module is a Rngs; allowed"),
        (lambda: trace(Mlp(nnx.Rngs(0)), {}, (X, Y)), "variables = from_nnx"),
        (lambda: trace(NETWORK, {"batch_stats": {}}, (X, Y)), "'params' is missing"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
