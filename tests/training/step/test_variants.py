"""Train and eval step with and without jit, under pmap, on the device: one result, one trace."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.data import dataset_info
from deepjax.models import ResNet, cifar_stages
from deepjax.training.config import train_config
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_eval_step, make_train_step

CONFIG = train_config(model="cifar_resnet20", batch_size=8, steps=4, warmup_epochs=0.0)
DIGITS = dataset_info("digits")
MODEL = ResNet(cifar_stages(8), "basic", 10, 2, stem="cifar", shortcut="A")
OPTIMIZER = make_optimizer(CONFIG)
TRAIN_STEP = make_train_step(MODEL, OPTIMIZER, make_schedule(CONFIG), DIGITS)
EVAL_STEP = make_eval_step(MODEL, DIGITS)


def batch(size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 17, (size, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


def state():
    return init_state(MODEL, OPTIMIZER, DIGITS.shape, 0.1, 0)


@functools.cache
def expected():
    """Under jit: the parameters after a step, and the sums of an evaluation."""
    masked = batch() | {"mask": np.ones(8, np.float32)}
    after, _ = jax.jit(TRAIN_STEP)(state(), batch())
    before = state()
    return after.params, jax.jit(EVAL_STEP)(before.params, before.batch_stats, masked)


class Variants(chex.TestCase):
    """Every variant of chex, on one device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_train_step(self):
        step = self.variant(lambda state, batch: TRAIN_STEP(state, batch)[0].params)
        params = step(state(), jax.tree.map(jnp.asarray, batch()))
        chex.assert_trees_all_close(first_device(params), expected()[0], rtol=1e-4, atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_eval_step(self):
        before = state()
        masked = batch() | {"mask": np.ones(8, np.float32)}
        sums = self.variant(EVAL_STEP)(
            before.params, before.batch_stats, jax.tree.map(jnp.asarray, masked)
        )
        chex.assert_trees_all_close(first_device(sums), expected()[1], rtol=1e-4)


def first_device(tree):
    """Chex's pmap variant returns a copy a device, of which the first is taken."""
    return jax.tree.map(jnp.asarray, tree)


def test_one_trace_serves_every_learning_rate_and_step():
    """Not in the package: chex counts by source text, over every network of a process."""
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(lambda state, batch: TRAIN_STEP(state, batch), n=1))
    now = state()
    for rate in (0.1, 0.01):
        now = now.replace(learning_rate=jnp.asarray(rate, jnp.float32))
        now, metrics = step(now, batch())
        assert float(metrics["learning_rate"]) == pytest.approx(
            rate * float(make_schedule(CONFIG)(int(now.step) - 1)), rel=1e-6
        )


@pytest.mark.parametrize(
    ("name", "shape"),
    [("label", (8, 1)), ("label", (7,)), ("image", (8, 8, 8)), ("image", (8, 8, 8, 3))],
)
def test_a_batch_of_other_shapes_is_refused_while_the_step_is_traced(name, shape):
    wrong = batch() | {name: np.zeros(shape, batch()[name].dtype)}
    with pytest.raises(AssertionError):
        jax.eval_shape(TRAIN_STEP, state(), wrong)
    with pytest.raises(AssertionError):
        before = state()
        jax.eval_shape(EVAL_STEP, before.params, before.batch_stats, wrong | {"mask": np.ones(8)})
