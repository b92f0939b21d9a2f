"""Checkpoints in a bucket: complete or not there, verified, and kept as on a disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.storage.bucket import Bucket, BucketError
from deepjax.training.checkpoint.bucket_store import BucketStore
from deepjax.training.checkpoint.inspect import defects
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.step.guard import init_guard
from deepjax.training.step.state import TrainState


def state_at(step):
    """Two parameters that name their step; the rest is that of a state before training."""
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"a": jnp.full((3, 5), step, jnp.float32), "b": jnp.arange(7.0)},
        batch_stats={},
        opt_state=(),
        key=jax.random.key(step),
        learning_rate=jnp.asarray(0.1, jnp.float32),
        guard=init_guard(),
        ema={},
        totals={},
    )


def opened(store, name, folder, owner=1, before_commit=lambda: None, patience=60, **options):
    bucket = Bucket(store.url(name), patience)
    where = BucketStore(bucket, folder / "checkpoints", owner, before_commit)
    said = []
    return Checkpoints(folder, warn=said.append, store=where, **options), where, said


def test_what_is_saved_is_restored_by_a_process_that_has_nothing(store, tmp_path):
    writer, _, _ = opened(store, "saved", tmp_path / "a")
    for step in (1, 2, 3):
        writer.save(state_at(step), {"next_index": step}, 1 / step)
    assert writer.wait_until_finished()
    assert writer.steps() == [2, 3]  # the newest two
    writer.close()
    reader, where, said = opened(store, "saved", tmp_path / "b", owner=2)
    restored, position = reader.restore(state_at(0))
    reader.close()
    assert (int(restored.step), position, said) == (3, {"next_index": 3}, [])
    assert np.array_equal(restored.params["a"], np.full((3, 5), 3))
    assert where.facts(3)["metric"] == 1 / 3


def test_the_best_is_kept_and_a_metric_is_added_later(store, tmp_path):
    writer, where, _ = opened(store, "best", tmp_path, keep_last=1, keep_best=1)
    for step, metric in ((1, 0.5), (2, 0.1), (3, None), (4, 0.9)):
        writer.save(state_at(step), {}, metric)
        writer.wait_until_finished()
        if step == 3:
            writer.note_metric(3, 0.7)
            assert where.facts(3)["metric"] == 0.7
    writer.close()
    assert where.steps() == [2, 4]


def test_a_rollback_deletes_what_follows(store, tmp_path):
    writer, where, _ = opened(store, "rollback", tmp_path, keep_last=3)
    for step in (1, 2, 3):
        writer.save(state_at(step), {})
        writer.wait_until_finished()
    restored, _ = writer.restore(state_at(0), before=3)
    writer.close()
    assert int(restored.step) == 2
    assert where.steps() == [1, 2]


def test_a_corrupt_object_is_noticed_and_the_checkpoint_before_is_used(store, tmp_path):
    writer, _, _ = opened(store, "corrupt", tmp_path / "a")
    for step in (1, 2):
        writer.save(state_at(step), {})
        writer.wait_until_finished()
    writer.close()
    bucket = Bucket(store.url("corrupt"))
    name = next(name for name in bucket.sizes("checkpoints/2.00000001/state/d"))
    content = bytearray(bucket.read(name))
    content[len(content) // 2] ^= 1
    bucket.write(name, bytes(content))
    reader, where, said = opened(store, "corrupt", tmp_path / "b", owner=2)
    restored, _ = reader.restore(state_at(0))
    reader.close()
    assert int(restored.step) == 1
    assert len(said) == 1
    assert f"{store.url('corrupt')}/checkpoints/2 is corrupt: " in said[0]
    assert where.steps() == [1]
    assert "checkpoints/2.00000001/manifest.corrupt.json" in bucket.sizes()  # nothing is lost


def test_a_copy_that_is_corrupt_is_fetched_again(store, tmp_path):
    writer, where, said = opened(store, "copy", tmp_path)
    writer.save(state_at(1), {})
    writer.wait_until_finished()
    copy = next((tmp_path / "checkpoints" / "1" / "state" / "d").iterdir())
    copy.write_bytes(b"other")
    assert defects(where.open(1)) == []
    restored, _ = writer.restore(state_at(0))
    writer.close()
    assert (int(restored.step), said) == (1, [])


@pytest.mark.parametrize("failing", range(0, 12, 3))
def test_a_save_that_is_interrupted_anywhere_leaves_the_one_before(store, tmp_path, failing):
    name = f"interrupted {failing}"
    writer, where, said = opened(store, name, tmp_path, patience=0.05)
    writer.save(state_at(1), {})
    assert writer.wait_until_finished()
    written = []

    def fault(method, path):
        if method in ("PUT", "POST"):
            written.append(path)
        return "503" if len(written) > failing else ""

    store.fault = fault
    writer.save(state_at(2), {})
    saved = writer.wait_until_finished()
    store.fault = lambda method, path: ""
    assert not saved
    assert "checkpoint of step 2 could not be written" in said[0]
    assert where.steps() == [1]
    writer.close()
    other, where, _ = opened(store, name, tmp_path / "other", owner=2)
    assert int(other.restore(state_at(0))[0].step) == 1
    other.close()
    names = Bucket(store.url(name)).sizes("checkpoints")
    assert {each.split("/")[1] for each in names} == {"1.00000001"}  # the rest was deleted


def test_an_owner_that_was_followed_commits_nothing(store, tmp_path):
    def lost():
        raise BucketError("lost the lock")

    writer, where, said = opened(store, "lost", tmp_path, before_commit=lost)
    writer.save(state_at(1), {})
    assert not writer.wait_until_finished()
    assert where.steps() == []
    assert "lost the lock" in said[0]
    writer.close()


def test_two_owners_write_no_object_of_one_name(store, tmp_path):
    """The first was suspended before its save of step 1, and ends it after the second's."""
    first, _, _ = opened(store, "two", tmp_path / "1", owner=1)
    second, where, _ = opened(store, "two", tmp_path / "2", owner=2)
    for writer, owner in ((second, 2), (first, 1)):
        folder = tmp_path / f"{owner}" / "checkpoints"
        writer.save(state_at(1), {"owner": owner})
        writer.wait_until_finished()
        assert (folder / "1").is_dir() == (owner == 2)  # there already
        writer.close()
    assert where.facts(1)["position"] == {"owner": 2}
    names = Bucket(store.url("two")).sizes("checkpoints")
    assert {name.split("/")[1] for name in names} == {"1.00000002"}


def test_another_network_is_refused_in_one_line(store, tmp_path):
    writer, _, _ = opened(store, "other", tmp_path)
    writer.save(state_at(1), {})
    writer.wait_until_finished()
    like = state_at(0).replace(params={"a": jnp.zeros((2, 2)), "b": jnp.zeros(7)})
    with pytest.raises(InputError, match=f"{store.url('other')}/checkpoints/1 is of another"):
        writer.restore(like)
    writer.close()


def test_a_bucket_that_is_gone_is_one_line(store, tmp_path):
    store.fault = lambda method, path: "503"
    with pytest.raises(InputError, match=r"cannot write checkpoints in .*gone/checkpoints"):
        opened(store, "gone", tmp_path, patience=0.05)


@pytest.mark.parametrize("verb", ["GET", "PUT"])
def test_an_outage_is_a_warning_until_the_state_must_be_saved(store, tmp_path, verb):
    """S3 lists by GET and writes by PUT, GCS writes by POST."""
    writer, _, said = opened(store, f"outage-{verb}", tmp_path, patience=0.1)
    verbs = ("PUT", "POST") if verb == "PUT" else (verb,)
    store.fault = lambda method, path: "503" if method in verbs else ""
    writer.save(state_at(1), {})
    writer.wait_until_finished()
    assert [line.partition(" (")[0] for line in said] == [
        f"checkpoint of step 1 could not be written to {store.url(f'outage-{verb}')}/checkpoints"
    ]
    with pytest.raises(InputError, match="cannot write checkpoints"):
        writer.save_last(state_at(2), {})
    store.fault = lambda method, path: ""
    writer.save_last(state_at(3), {})
    assert writer.steps() == [3]
    store.fault = lambda method, path: "503"
    for read in (writer.steps, writer.latest, lambda: writer.digest(3)):
        with pytest.raises(InputError, match="cannot list"):
            read()
    store.fault = lambda method, path: ""
    writer.close()
