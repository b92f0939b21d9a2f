"""The lock of a run directory in a bucket: one owner at a time, whatever happens to it."""

import dataclasses
import json
import subprocess
import sys
import threading
import time

import pytest

from deepjax.errors import InputError
from deepjax.owner import this_process
from deepjax.storage.bucket import Bucket
from deepjax.storage.lock import FOLDER, BucketLock, lock_of

NEVER = 3600.0


def make(store, name, said=None, heartbeat=NEVER, stale=NEVER):
    return BucketLock(
        Bucket(store.url(name)), [].append if said is None else said.append, heartbeat, stale
    )


def left_by(store, name, **changes):
    """The lock that another process left."""
    owner = dataclasses.replace(this_process(), **changes)
    Bucket(store.url(name)).write(
        f"{FOLDER}/00000001", json.dumps(dataclasses.asdict(owner)).encode()
    )


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_owners_are_numbered_and_a_living_one_is_not_followed(store):
    first = make(store, "numbers")
    first.acquire()
    with pytest.raises(InputError, match=f"{store.url('numbers')} is in use by process"):
        make(store, "numbers").acquire()
    assert first.check()
    assert lock_of(Bucket(store.url("numbers")))
    first.release()
    assert not lock_of(Bucket(store.url("numbers")))
    second = make(store, "numbers")
    second.acquire()
    second.release()
    assert (first.number, second.number) == (1, 2)


def test_of_several_starts_at_once_one_becomes_the_owner(store):
    locks = [make(store, "race") for _ in range(6)]
    outcomes = []

    def start(lock):
        try:
            lock.acquire()
            outcomes.append(lock.number)
        except InputError:
            outcomes.append(0)

    threads = [threading.Thread(target=start, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [0, 0, 0, 0, 0, 1]
    for lock in locks:
        lock.release()


def test_a_process_of_this_machine_that_was_killed_is_followed_at_once(store):
    left_by(store, "killed", pid=ended_process(), started="1")
    said = []
    lock = make(store, "killed", said)
    lock.acquire()
    lock.release()
    assert lock.number == 2
    assert "has ended; this process takes over" in said[0]


def test_another_machine_is_watched_until_its_lock_is_stale(store):
    left_by(store, "elsewhere", host="elsewhere", machine="another boot")
    said = []
    lock = make(store, "elsewhere", said, stale=0.2)
    lock.acquire()
    lock.release()
    assert lock.number == 2
    assert "is locked by process" in said[0]
    assert "on host elsewhere" in said[0]
    assert "takes over" in said[1]


def test_another_machine_that_gives_a_sign_of_life_is_not_followed(store):
    left_by(store, "alive", host="elsewhere", machine="another boot")
    bucket, over = Bucket(store.url("alive")), threading.Event()

    def live():
        count = 0
        while not over.wait(0.05):
            count += 1
            bucket.write(f"{FOLDER}/00000001.alive", str(count).encode())

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(InputError, match=r"is in use by process .* on host elsewhere"):
            make(store, "alive", stale=60).acquire()
    finally:
        over.set()
        thread.join()


def test_another_machine_that_releases_is_followed_without_the_wait(store):
    left_by(store, "released", host="elsewhere", machine="another boot")
    bucket = Bucket(store.url("released"))
    release = threading.Timer(0.3, bucket.write, (f"{FOLDER}/00000001.released", b"x"))
    release.start()
    lock = make(store, "released", stale=60)
    lock.acquire()
    lock.release()
    release.join()
    assert lock.number == 2


def test_an_owner_that_was_suspended_learns_that_it_was_followed(store):
    suspended = make(store, "suspended", heartbeat=0.05)
    suspended.acquire()
    Bucket(store.url("suspended")).write(f"{FOLDER}/00000002", b"{}")
    end = time.monotonic() + 60
    while not suspended.is_lost() and time.monotonic() < end:
        time.sleep(0.05)
    assert suspended.is_lost()
    assert not suspended.check()
    suspended.release()  # of another's lock: nothing is written
    assert f"{FOLDER}/00000001.released" not in Bucket(store.url("suspended")).sizes()


def test_a_bucket_that_cannot_be_reached_is_one_line(store):
    store.fault = lambda method, path: "503"
    lock = BucketLock(Bucket(store.url("gone"), patience=0.05), print)
    with pytest.raises(InputError, match=r"cannot list .*gone/run.lock: .*check the URL"):
        lock.acquire()
