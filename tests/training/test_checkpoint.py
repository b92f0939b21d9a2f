"""Checkpoints: kept, cleaned, restored onto any number of devices, and summed up by one digest."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from deepjax.errors import InputError
from deepjax.models import ResNet, cifar_stages
from deepjax.training import TrainConfig, parallel
from deepjax.training.checkpoint import Checkpoints, digest
from deepjax.training.optimizers import make_optimizer
from deepjax.training.state import TrainState, init_state

OPTIMIZER = make_optimizer(TrainConfig(model="cifar_resnet20"))


def state_at(step: int, devices: int = 1, seed: int = 0) -> TrainState:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    state = init_state(ResNet(cifar_stages(8), "basic", 10, 2, stem="cifar", shortcut="A"), OPTIMIZER, (8, 8, 1), 0.1, seed)
    return jax.device_put(state.replace(step=jnp.asarray(step, jnp.int32)), parallel.replicated(mesh))


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_restored_bits_are_equal_on_any_number_of_devices(checkpoints, devices):
    saved = state_at(3)
    checkpoints.save(saved, {"next_index": 3})
    restored, position = checkpoints.restore(state_at(0, devices, seed=1))
    assert position == {"next_index": 3}
    as_words = [jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key))) for state in (saved, restored)]
    chex.assert_trees_all_equal(*as_words)
    assert len(restored.step.sharding.device_set) == devices


def test_the_newest_two_are_kept(checkpoints, tmp_path):
    for step in (1, 2, 3, 4):
        checkpoints.save(state_at(step), {"next_index": step})
    assert checkpoints.settle()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    assert checkpoints.latest() == 4


def test_what_an_interrupted_save_left_is_cleared_away(tmp_path):
    left = tmp_path / "checkpoints" / "5.partial"
    (left / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    opened = Checkpoints(tmp_path)
    assert opened.latest() is None
    assert not left.exists()
    opened.close()


def test_the_digest_is_of_everything_and_of_nothing_else(tmp_path):
    digests = {}
    for name, state, position in (
        ("same", state_at(3), 3),
        ("same again", state_at(3, devices=8), 3),
        ("another weight", state_at(3, seed=1), 3),
        ("another position", state_at(3), 4),
        ("another key", state_at(3).replace(key=jax.random.key(9)), 3),
        ("another rate", state_at(3).replace(learning_rate=jnp.asarray(0.2, jnp.float32)), 3),
    ):
        opened = Checkpoints(tmp_path / name)
        opened.save(state, {"next_index": position})
        opened.close()
        digests[name] = digest(tmp_path / name)[1]
    assert digests.pop("same") == digests["same again"]
    assert len(set(digests.values())) == 5


def test_an_empty_directory_is_named(tmp_path, checkpoints):
    with pytest.raises(InputError, match="holds no checkpoint"):
        digest(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.restore(state_at(0))
