"""Checkpoints: kept, cleaned, restored onto any number of devices, and summed up by one digest."""

import dataclasses
import hashlib
import random
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from orbax.checkpoint._src.serialization import ocdbt_utils

from deepjax.cli import runs
from deepjax.errors import InputError
from deepjax.models import ResNet, cifar_stages
from deepjax.training import TrainConfig
from deepjax.training.checkpoint import manager
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.checkpoint.manifest import problems
from deepjax.training.checkpoint.store import FolderStore
from deepjax.training.distributed import sharding
from deepjax.training.step.optimizers import make_optimizer
from deepjax.training.step.state import TrainState, init_state

OPTIMIZER = make_optimizer(TrainConfig(model="cifar_resnet20"))


def state_at(step: int, devices: int = 1, seed: int = 0) -> TrainState:
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    state = init_state(
        ResNet(cifar_stages(8), "basic", 10, 2, stem="cifar", shortcut="A"),
        OPTIMIZER,
        (8, 8, 1),
        0.1,
        seed,
    )
    return jax.device_put(
        state.replace(step=jnp.asarray(step, jnp.int32)), sharding.replicated_sharding(mesh)
    )


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("devices", [1, 2, pytest.param(8, marks=pytest.mark.eight_devices)])
def test_restored_bits_are_equal_on_any_number_of_devices(checkpoints, devices):
    saved = state_at(3)
    checkpoints.save(saved, {"next_index": 3})
    restored, position = checkpoints.restore(state_at(0, devices, seed=1))
    assert position == {"next_index": 3}
    as_words = [
        jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key)))
        for state in (saved, restored)
    ]
    chex.assert_trees_all_equal(*as_words)
    assert len(restored.step.sharding.device_set) == devices


def test_the_newest_two_are_kept(checkpoints, tmp_path):
    for step in (1, 2, 3, 4):
        checkpoints.save(state_at(step), {"next_index": step})
    assert checkpoints.wait_until_finished()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    assert checkpoints.latest() == 4


def test_what_an_interrupted_save_left_is_cleared_away(tmp_path):
    left = tmp_path / "checkpoints" / "5.partial"
    (left / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    opened = Checkpoints(tmp_path)
    assert opened.latest() is None
    assert not left.exists()
    opened.close()


@pytest.mark.eight_devices
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
    with pytest.raises(InputError, match="holds no valid checkpoint"):
        checkpoints.restore(state_at(0))


def save_all(folder, metrics: dict[int, float | None], **options) -> Checkpoints:
    opened = Checkpoints(folder, **options)
    for step, metric in metrics.items():
        opened.save(state_at(step), {"next_index": step}, metric)
    assert opened.wait_until_finished()
    return opened


def test_the_best_are_kept_beside_the_newest(tmp_path):
    opened = save_all(tmp_path, {1: 0.5, 2: 0.1, 3: 0.3, 4: None, 5: 0.4}, keep_last=1, keep_best=2)
    assert opened.steps() == [2, 3, 5]
    opened.close()


def test_going_back_removes_the_abandoned_branch(tmp_path):
    opened = save_all(tmp_path, {10: None, 20: None, 30: None}, keep_last=5)
    state, position = opened.restore(state_at(0), before=21)
    assert (int(state.step), position, opened.steps()) == (20, {"next_index": 20}, [10, 20])
    opened.save(state_at(25), {"next_index": 25})
    opened.close()
    assert Checkpoints(tmp_path).latest() == 25


def test_a_save_that_fails_is_said_and_the_next_is_made(tmp_path):
    said = []
    opened = Checkpoints(tmp_path, warn=said.append)
    with mock.patch.object(
        manager, "write_manifest", side_effect=OSError(28, "No space left on device")
    ):
        opened.save(state_at(1), {"next_index": 1})
        assert not opened.wait_until_finished()
    assert "checkpoint of step 1 could not be written" in said[0] and "No space left" in said[0]
    opened.save(state_at(2), {"next_index": 2})
    opened.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2"]


async def nothing(*_, **__) -> None:
    """In place of a part of Orbax's saving."""


def test_a_save_that_orbax_left_incomplete_has_failed(tmp_path):
    """As it does, with no more than a log line, where it does not find the files that it wrote."""
    said = []
    opened = Checkpoints(tmp_path, warn=said.append)
    with mock.patch.object(ocdbt_utils, "merge_ocdbt_per_process_files", nothing):
        opened.save(state_at(1), {"next_index": 1})
        assert not opened.wait_until_finished()
    assert (
        len(said) == 1
        and "checkpoint of step 1 could not be written" in said[0]
        and "cannot be opened" in said[0]
    )
    opened.save(state_at(2), {"next_index": 2})
    opened.close()
    assert opened.steps() == [2]


def test_a_checkpoint_of_before_that_cannot_be_opened_is_not_used(tmp_path, capsys):
    """Whole by its manifest, but for what Orbax should have written and had not."""
    opened = save_all(tmp_path, {1: None})
    with (
        mock.patch.object(ocdbt_utils, "merge_ocdbt_per_process_files", nothing),
        mock.patch.object(manager, "defects", lambda folder: []),
    ):
        opened.save(state_at(2), {"next_index": 2})
        assert opened.wait_until_finished() and problems(tmp_path / "checkpoints" / "2") == []
    with pytest.raises(InputError, match=r"checkpoints/2 is corrupt: its arrays cannot be opened"):
        runs.start(["verify", str(tmp_path)])
    first, second = capsys.readouterr().out.splitlines()
    assert "  OK  digest " in first and second.endswith("DAMAGED")
    opened._warn = lambda line: None
    assert int(opened.restore(state_at(0))[0].step) == 1
    opened.close()


@pytest.mark.eight_devices
@pytest.mark.parametrize("change", ["missing", "type", "shape", "value"])
def test_what_was_written_is_compared_with_what_was_to_be_saved(change, tmp_path):
    """Orbax is given another state; of values alone only a full comparison knows."""
    changed = {
        "missing": lambda state: state.replace(batch_stats={}),
        "type": lambda state: state.replace(learning_rate=state.learning_rate.astype(jnp.bfloat16)),
        "shape": lambda state: state.replace(learning_rate=state.learning_rate[None]),
        "value": lambda state: state.replace(
            learning_rate=state.learning_rate * jnp.float32(1 + 2**-23)
        ),
    }[change]
    said = []
    for verify, fails in (("structure", change != "value"), ("full", True)):
        opened = Checkpoints(tmp_path / verify, warn=said.append, verify=verify)
        save = opened._orbax.save
        with mock.patch.object(
            opened._orbax, "save", lambda path, state, save=save: save(path, changed(state))
        ):
            opened.save(state_at(1), {"next_index": 1})
            assert opened.wait_until_finished() is not fails
        opened.save(state_at(2, devices=8), {"next_index": 2})
        assert opened.wait_until_finished()
        opened.close()
    name = "batch_stats" if change == "missing" else "learning_rate"
    assert len(said) == 1 + (change != "value") and all(
        "read again it differs" in line and name in line for line in said
    )


@pytest.mark.parametrize("file", ["manifest of the oldest", "folder that cannot be removed"])
def test_trouble_with_old_checkpoints_is_no_failure_of_a_save(file, tmp_path):
    said = []
    save_all(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3}, keep_last=2, keep_best=1).close()
    opened = Checkpoints(tmp_path, keep_last=2, keep_best=1, warn=said.append)
    if file == "manifest of the oldest":
        (tmp_path / "checkpoints" / "1" / "manifest.json").write_text("damaged")
        opened.save(state_at(4), {"next_index": 4}, 0.4)
        assert opened.wait_until_finished() and not said
        # The best of those whose metric is known; the unreadable one has none.
        assert opened.steps() == [2, 3, 4]
    else:
        with mock.patch.object(FolderStore, "remove", side_effect=OSError(13, "Permission denied")):
            opened.save(state_at(4), {"next_index": 4}, 0.4)
            assert opened.wait_until_finished()
        assert opened.steps() == [1, 2, 3, 4]
        assert (
            len(said) == 1 and "could not be removed" in said[0] and "Permission denied" in said[0]
        )
    opened.close()


def test_the_last_save_must_succeed(tmp_path):
    opened = Checkpoints(tmp_path, warn=lambda line: None)
    with (
        mock.patch.object(
            manager, "write_manifest", side_effect=OSError(28, "No space left on device")
        ),
        pytest.raises(InputError, match="cannot write checkpoints in"),
    ):
        opened.save_last(state_at(1), {"next_index": 1})
    opened.close()


def test_of_nothing_but_damaged_ones_none_is_used(tmp_path):
    opened = save_all(tmp_path, {1: None, 2: None})
    for path in (tmp_path / "checkpoints").rglob("d/*"):
        path.write_bytes(b"x" + path.read_bytes()[1:])
    opened = Checkpoints(tmp_path, warn=lambda line: None)
    with pytest.raises(InputError, match="no valid checkpoint"):
        opened.restore(state_at(0))
    opened.close()


def test_the_command_line_lists_verifies_and_compares(tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        opened = Checkpoints(tmp_path / name)
        opened.save(state_at(3, seed=seed), {"next_index": 3}, 0.25)
        opened.close()
    runs.start(["verify", str(tmp_path / "a")])
    assert re.match(r"checkpoint +3 +\d+\.\d\d MiB .* test error 25.00 %", capsys.readouterr().out)
    runs.start(["diff", str(tmp_path / "a"), str(tmp_path / "a")])
    runs.start(["diff", str(tmp_path / "a"), str(tmp_path / "b")])
    same, *lines = capsys.readouterr().out.splitlines()
    assert same == "no difference"
    assert any(
        re.match(r"\['params'\]\['stem_conv'\]\['kernel'\]: \d+ of \d+ numbers differ, by", line)
        for line in lines
    )
    runs.start(["verify", str(tmp_path / "a")])
    assert capsys.readouterr().out.endswith(f"OK  digest {digest(tmp_path / 'a')[1]}\n")
    manifest = tmp_path / "a" / "checkpoints" / "3" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"next_index", b"next_andex"))
    with pytest.raises(InputError, match=r"checkpoints/3 is corrupt: manifest.json is corrupt"):
        runs.start(["verify", str(tmp_path / "a")])
    with pytest.raises(InputError, match=r"an option is missing|OTHER"):
        runs.start(["diff", str(tmp_path / "a")])


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"files": []}',
        "[" * 100_000,
        '{"files": {"../x": {"sha256": "0", "bytes": 1}}}',
    ],
    ids=lambda c: c[:9],
)
def test_a_manifest_of_another_s_making_is_refused(content, tmp_path):
    opened = save_all(tmp_path, {1: None})
    opened.close()
    path = tmp_path / "checkpoints" / "1" / "manifest.json"
    path.write_text(f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")
    with pytest.raises(InputError, match=r"checkpoint .*1 is corrupt: manifest.json"):
        digest(tmp_path)


def test_one_bit_anywhere_is_noticed(tmp_path):
    """`make faults` flips 2,000 bits of a run's checkpoint, and restores."""
    save_all(tmp_path, {1: None}).close()
    folder = tmp_path / "checkpoints" / "1"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    rng = random.Random(0)
    for path in files * 10:
        whole = path.read_bytes()
        place = rng.randrange(8 * len(whole))
        path.write_bytes(
            whole[: place // 8]
            + bytes([whole[place // 8] ^ 1 << place % 8])
            + whole[place // 8 + 1 :]
        )
        assert any(path.name in line for line in problems(folder)), f"bit {place} of {path}"
        path.write_bytes(whole)
    assert problems(folder) == []
