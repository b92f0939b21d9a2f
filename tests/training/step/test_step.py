"""The pure step: compiled once, equal on 1 and 8 devices, unaffected by non-finite numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from deepjax.data import dataset_info
from deepjax.models import ResNet, cifar_stages
from deepjax.training.config import replace_options, train_config
from deepjax.training.distributed import sharding
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_eval_step, make_train_step

CONFIG = train_config(model="cifar_resnet20", batch_size=16, steps=8, warmup_epochs=0.0)
DIGITS = dataset_info("digits")
MODEL = ResNet(cifar_stages(8), "basic", 10, 4, stem="cifar", shortcut="A")
STEP = make_train_step(MODEL, make_optimizer(CONFIG), make_schedule(CONFIG), DIGITS)


def batch(seed: int = 0, size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 17, (size, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


def fresh_state(mesh):
    return jax.device_put(
        init_state(MODEL, make_optimizer(CONFIG), DIGITS.shape, 0.1, 0),
        sharding.replicated_sharding(mesh),
    )


def mesh_of(devices: int):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@pytest.fixture(scope="module")
def steps_on_one_and_eight():
    results = []
    for devices in (1, 8):
        mesh = mesh_of(devices)
        step = sharding.Partitioner(mesh).compile_train(STEP, fresh_state(mesh))
        state = fresh_state(mesh)
        for i in range(5):
            state, metrics = step(state, sharding.Partitioner(mesh).put_batch(batch(i)))
        results.append(jax.device_get((state.params, state.batch_stats, metrics["loss"])))
    return results


@pytest.mark.eight_devices
def test_one_and_eight_devices_agree(steps_on_one_and_eight):
    """Statistics span the whole batch on any number of devices; only rounding differs."""
    one, eight = steps_on_one_and_eight
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_step_compiles_once_per_shape():
    mesh = sharding.make_mesh()
    chex.clear_trace_counter()
    step = sharding.Partitioner(mesh).compile_train(
        chex.assert_max_traces(STEP, n=1), fresh_state(mesh)
    )
    state = fresh_state(mesh)
    for i in range(3):
        state, _ = step(state, sharding.Partitioner(mesh).put_batch(batch(i)))
        state = state.replace(learning_rate=state.learning_rate * 0.5)
    with pytest.raises(AssertionError, match="traced"):
        step(state, sharding.Partitioner(mesh).put_batch(batch(size=32)))


def test_state_is_donated_and_sums_add_up():
    mesh = sharding.make_mesh()
    step = sharding.Partitioner(mesh).compile_train(STEP, fresh_state(mesh))
    before = fresh_state(mesh)
    state, first = step(before, sharding.Partitioner(mesh).put_batch(batch(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    state, second = step(state, sharding.Partitioner(mesh).put_batch(batch(1)))
    assert int(state.step) == 2
    np.testing.assert_allclose(state.totals["loss"], first["loss"] + second["loss"], rtol=1e-6)
    assert float(state.totals["images"]) == 32


def poison(state, where: str):
    if where == "parameters":
        return state.replace(
            params=jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), state.params)
        )
    if where == "rate":  # an overflowing update is finite in gradients and loss
        return state.replace(learning_rate=jnp.asarray(jnp.inf, jnp.float32))
    return state.replace(
        batch_stats=jax.tree.map(lambda leaf: leaf.at[0].set(jnp.inf), state.batch_stats)
    )


@pytest.mark.parametrize("where", ["parameters", "statistics"])
def test_a_step_that_is_not_finite_changes_nothing_and_stays_halted(where):
    state = poison(init_state(MODEL, make_optimizer(CONFIG), DIGITS.shape, 0.1, 0), where)
    step = jax.jit(STEP)
    after, _ = step(state, jax.tree.map(jnp.asarray, batch(0)))
    again, _ = step(after, jax.tree.map(jnp.asarray, batch(1)))
    assert int(after.guard.halted) == int(again.guard.halted) == 0
    chex.assert_trees_all_equal(again.replace(guard=state.guard, key=0), state.replace(key=0))


def test_an_infinite_update_is_not_made():
    state = poison(init_state(MODEL, make_optimizer(CONFIG), DIGITS.shape, 0.1, 0), "rate")
    after, _ = jax.jit(STEP)(state, jax.tree.map(jnp.asarray, batch(0)))
    assert (int(after.guard.halted), int(after.step)) == (0, 0)
    chex.assert_trees_all_equal(after.params, state.params)


@pytest.mark.parametrize(("scale", "halted"), [(1.0, -1), (1e25, 0)])
def test_gradients_whose_squares_overflow_do_not_reach_the_optimizer_s_state(scale, halted):
    """float32 ends at 3.4e38: gradients of 1e25 are finite, but Adam's second moment is not.

    Its update would be a harmless zero.
    """
    optimizer = optax.chain(
        optax.scale(scale), make_optimizer(replace_options(CONFIG, optimizer="adamw"))
    )
    step = make_train_step(MODEL, optimizer, make_schedule(CONFIG), DIGITS)
    state = init_state(MODEL, optimizer, DIGITS.shape, 0.1, 0)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its step count with its rates
        after, metrics = jax.jit(step)(state, jax.tree.map(jnp.asarray, batch(0)))
    assert int(after.guard.halted) == halted
    assert all(
        bool(jnp.all(jnp.isfinite(leaf)))
        for leaf in jax.tree.leaves((after.opt_state, metrics["gradient_norms"]))
    )


@pytest.mark.parametrize("label", [10, 255])
def test_a_label_beyond_the_classes_halts(label):
    bad = batch(0)
    bad["label"][3] = label
    after, _ = jax.jit(STEP)(
        init_state(MODEL, make_optimizer(CONFIG), DIGITS.shape, 0.1, 0),
        jax.tree.map(jnp.asarray, bad),
    )
    assert int(after.guard.halted) == 0


def test_evaluation_leaves_padding_out():
    state = init_state(MODEL, make_optimizer(CONFIG), DIGITS.shape, 0.1, 0)
    step = jax.jit(make_eval_step(MODEL, DIGITS))
    data = batch(0)
    whole = step(state.params, state.batch_stats, {**data, "mask": np.ones(16, np.float32)})
    mask = np.array([1.0] * 5 + [0.0] * 11, np.float32)
    data["image"][5:] = 255
    padded = step(state.params, state.batch_stats, {**data, "mask": mask})
    first = step(
        state.params,
        state.batch_stats,
        {**{k: v[:5] for k, v in batch(0).items()}, "mask": np.ones(5, np.float32)},
    )
    assert (float(whole["images"]), float(padded["images"])) == (16, 5)
    chex.assert_trees_all_close(padded, first, rtol=1e-5)
