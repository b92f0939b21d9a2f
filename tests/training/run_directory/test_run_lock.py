"""The lock of a run directory: who may write, and what happens if the owner has ended."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from deepjax.errors import InputError
from deepjax.training import TrainConfig, train
from deepjax.training.run_directory import run_lock
from deepjax.training.run_directory.run_lock import NAME, RunLock, hold

SAY: list[str] = []


def locked(folder, **owner) -> None:
    """A lock as another process left it: of this machine unless `owner` says otherwise."""
    mine = dataclasses.asdict(RunLock(folder, SAY.append)._me) | {"token": "other"} | owner
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps(mine))


def ended_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_second_owner_is_refused_and_told_the_first(tmp_path):
    with hold(tmp_path, SAY.append):
        named = (
            rf"is in use by process {os.getpid()} on host \S+ since \d{{4}}-\d\d-\d\d .*"
            rf"choose another --output-dir.*delete .*{NAME}"
        )
        with pytest.raises(InputError, match=named), hold(tmp_path, SAY.append):
            pass
        assert (tmp_path / NAME).exists()
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path, SAY.append):
        pass


def test_training_is_refused_before_anything_is_compiled_and_nothing_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "deepjax.training.loop.compile_training", lambda *_: pytest.fail("compiled")
    )
    with hold(tmp_path, SAY.append), pytest.raises(InputError, match="is in use by process"):
        train(TrainConfig(model="cifar_resnet20"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["ended", "another process has its id now", "zombie"])
def test_the_lock_of_a_process_of_this_machine_that_has_ended_is_taken_over(how, tmp_path):
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    owner = {
        "ended": {"pid": ended_process()},
        "another process has its id now": {"started": "1"},
        "zombie": {"pid": zombie.pid},
    }[how]
    locked(tmp_path, **owner)
    said: list[str] = []
    with hold(tmp_path, said.append):
        assert len(said) == 1 and "which has ended; this process takes over" in said[0]
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    zombie.wait()


@pytest.mark.parametrize("other", [{"host": "node7"}, {"machine": "another boot"}, {"machine": ""}])
def test_of_another_machine_only_a_lock_that_is_not_renewed_is_taken_over(other, tmp_path):
    """The process id says nothing there, so the lock is watched; its owner is this very process."""
    locked(tmp_path, **other)
    said: list[str] = []
    lock = RunLock(tmp_path, said.append, stale=0.2)
    lock.acquire()
    lock.release()
    assert "for a heartbeat" in said[0] and "takes over" in said[1]

    locked(tmp_path, **other)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.02):
            os.utime(tmp_path / NAME)

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(InputError, match="is in use by process"):
        RunLock(tmp_path, said.append, stale=5.0).acquire()
    over.set()
    thread.join()


def test_a_lock_that_names_nobody_is_watched_too(tmp_path):
    (tmp_path / NAME).write_text('{"pid": -1')
    lock = RunLock(tmp_path, SAY.append, stale=0.1)
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def waited(for_what) -> bool:
    until = time.monotonic() + 30
    while not for_what() and time.monotonic() < until:
        time.sleep(0.01)
    return for_what()


def test_the_owner_renews_its_lock_makes_it_again_and_notices_another(tmp_path):
    lock = RunLock(tmp_path, SAY.append, heartbeat=0.02)
    lock.acquire()
    path = tmp_path / NAME
    content = path.read_bytes()
    os.utime(path, (0, 0))
    assert waited(lambda: path.stat().st_mtime > 0)
    path.unlink()
    assert waited(lambda: path.exists() and path.read_bytes() == content)  # made, then written
    lock.confirm()
    locked(tmp_path, host="node7")
    assert waited(lambda: lock._lost)
    with pytest.raises(InputError, match="another process took it over"):
        lock.confirm()
    lock.release()
    assert json.loads(path.read_text())["host"] == "node7"  # which is not ours to remove


def test_of_many_at_once_exactly_one_takes_over(tmp_path):
    locked(tmp_path, pid=ended_process())
    locks = [RunLock(tmp_path, SAY.append) for _ in range(16)]
    refused: list[InputError] = []

    def acquire(lock: RunLock) -> None:
        try:
            lock.acquire()
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=acquire, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 15
    for lock in locks:
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    """As where an evaluation is refused after its folder was made."""
    with pytest.raises(InputError, match="refused"), hold(tmp_path / "out", SAY.append):
        raise InputError("refused")
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(InputError, match=r"is a file, .* not a directory"),
        hold(tmp_path / "file" / "run", SAY.append),
    ):
        pass
    monkeypatch.setattr(
        run_lock.os,
        "fdopen",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(InputError, match="No space left"), hold(tmp_path / "run", SAY.append):
        pass
    assert not (tmp_path / "run").exists()
