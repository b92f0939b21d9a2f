"""Our networks as NNX modules: the logits of linen, and a plain NNX training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from deepjax import create_model
from deepjax.analysis import TRAIN, from_nnx, trace
from deepjax.models import to_nnx

IMAGES = jax.random.normal(jax.random.key(0), (32, 8, 8, 3))
LABELS = (IMAGES[:, :4].sum((1, 2, 3)) > 0).astype(jnp.int32)
LINEN = create_model("cifar_resnet20", width=4, num_classes=2)


def test_it_is_the_same_network():
    module = to_nnx(LINEN, IMAGES, nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    stats = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
    assert set(state) == set(params)
    wanted = LINEN.apply({"params": params, "batch_stats": stats}, IMAGES)
    for found in (module(IMAGES, train=False), nnx.merge(*nnx.split(module))(IMAGES, train=False)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    module.eval()
    np.testing.assert_array_equal(module(IMAGES), module(IMAGES, train=False))


def test_instruments_see_the_layers_and_leave_the_module_alone():
    module = to_nnx(LINEN, IMAGES, nnx.Rngs(0))
    graph, state, _ = nnx.split(module, nnx.Not(nnx.RngState), ...)
    report = trace(*from_nnx(module), (IMAGES, LABELS), mode=TRAIN)
    rows = {row.layer: row for row in report.layers}
    assert rows["stage3_block1/conv2"].runs == 1
    assert "to_nnx__deepjax" not in vars(module) and module.to_nnx__module is LINEN
    assert nnx.graphdef(module) == graph
    after = nnx.state(module, nnx.Not(nnx.RngState))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_plain_loop_of_nnx_trains_it():
    module = to_nnx(LINEN, IMAGES, nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, optax.sgd(0.1, 0.9), wrt=nnx.Param)

    def loss_of(module):
        logits = module(IMAGES)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    @nnx.jit
    def step(module, optimizer):
        loss, gradients = nnx.value_and_grad(loss_of)(module)
        optimizer.update(module, gradients)
        return loss

    losses = [float(step(module, optimizer)) for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]
    means = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))["stem_norm"]["mean"]
    assert float(jnp.abs(means).max()) > 0
