"""Runs in a bucket: kills, flipped bits, and an object store that fails in every way."""

import asyncio
import contextlib
import os
import random
import signal
import time
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from deepjax.command_line import EXIT_STOPPED
from deepjax.storage import bucket as bucket_module
from deepjax.storage.bucket import Bucket
from deepjax.training.checkpoint.bucket_store import BucketStore
from deepjax.training.checkpoint.inspect import defects
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.checkpoint.run_copy import local_run
from deepjax.training.preemption import EXIT_HUNG
from tests.faults.kills import (
    LONG,
    MARKED,
    killed_run,
    pair,
    together,
    wait_for_first_step,
)
from tests.faults.runs import CONFIG, complete, finish, outcome, programs, reference
from tests.faults.tally import Tally
from tests.storage.servers import Store, running

SCHEMES = ("s3", "gs")
SHARE = 0.1  # of the requests that fail
SAVE_FAILED = "could not be written"
KINDS = ("503", "429", "drop", "slow", "503 after", "drop after", "truncate")


async def _shortly(_: float) -> None:
    await asyncio.sleep(0.05)


SHORT_PAUSES = types.SimpleNamespace(sleep=_shortly)  # between the retries of gcsfs


@contextlib.contextmanager
def _opened(scheme: str, work: Path) -> Iterator[Store]:
    """A store to which this process and its children are pointed."""
    with running(scheme) as store:
        variables = store.environment | {"XDG_CACHE_HOME": str(work / "cache")}
        with mock.patch.dict(os.environ, variables):
            yield store


def _outcome(url: str) -> tuple[object, ...]:
    """As of a run on a disk; and no checkpoint without a manifest."""
    digest, rows, _ = outcome(local_run(url, "run"))
    return digest, rows, _incomplete(url)


def killed_in_a_bucket(tries: int, work: Path, seed: int = 0) -> Tally:
    """SIGKILL between a start's first step and its last save; restarts until the run ends."""
    tally = Tally(
        "SIGKILL of runs in a bucket (S3, GCS)",
        "final state and logs bitwise equal to a run on a disk, no partial checkpoint left",
    )
    expected = reference(work, LONG)
    rng = random.Random(seed)
    runs = saving = 0
    with contextlib.ExitStack() as stack:
        stores = {scheme: stack.enter_context(_opened(scheme, work)) for scheme in SCHEMES}
        while tally.tried < tries:
            url = stores[SCHEMES[runs % 2]].url(f"killed-{runs}")
            hits = 0
            while tally.tried + hits < tries and (
                hit := killed_run(
                    url, rng.uniform(0.0, 1.5), lambda url=url: bool(_incomplete(url))
                )
            ):
                hits += 1
                saving += hit == "saving"
            complete(url, LONG)
            same = _outcome(url) == expected
            for number in range(hits):
                tally.count(same, f"{url}, kill {number + 1}: the end differs")
            runs += 1
    tally.note = f"({runs} runs; {saving} of the kills fell into a save)"
    return tally


def _incomplete(url: str) -> list[str]:
    """Folders of checkpoints without a manifest."""
    names = Bucket(url).sizes("checkpoints")
    folders = {"/".join(name.split("/")[:2]) for name in names}
    return sorted(each for each in folders if f"{each}/manifest.json" not in names)


def flipped_in_a_bucket(tries: int, work: Path, seed: int = 0, restores: int = 10) -> Tally:
    """One bit flipped in an object of the newest checkpoint, objects weighted by size."""
    tally = Tally(
        "one bit flipped in an object of a checkpoint", "0 unnoticed; the newest good step is used"
    )
    rng = random.Random(seed)
    with _opened("s3", work) as store:
        url = store.url("flipped")
        complete(url)
        bucket = Bucket(url)
        there = BucketStore(bucket, work / "copies")
        older, newest = there.steps()[-2:]
        expected = _numbers(url, work, keep=older)
        sizes = {
            name: size
            for name, size in bucket.sizes("checkpoints").items()
            if name.startswith(f"checkpoints/{newest}.")
        }
        for turn in range(tries):
            name = rng.choices(list(sizes), list(sizes.values()))[0]
            content = bucket.read(name)
            place = rng.randrange(len(content) * 8)
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << (place % 8)
            bucket.write(name, bytes(damaged))
            fresh = BucketStore(bucket, work / "fresh")
            noticed = bool(defects(fresh.open(newest)))
            if turn % restores == 0:
                step, numbers, said = _restored(url, work)
                noticed = noticed and step == older and len(said) == 1 and numbers == expected
                _repair(bucket, newest)
            bucket.write(name, content)
            tally.count(noticed, f"bit {place} of {name}")
    tally.note = f"({len(range(0, tries, restores))} of them restored in full)"
    return tally


def _repair(bucket: Bucket, step: int) -> None:
    """Undo what was done to a corrupt checkpoint."""
    for name in bucket.sizes("checkpoints"):
        if name.startswith(f"checkpoints/{step}.") and name.endswith("manifest.corrupt.json"):
            folder = name.rpartition("/")[0]
            bucket.write(f"{folder}/manifest.json", bucket.read(name))
            bucket.delete([name])


def _restored(url: str, work: Path) -> tuple[int, list[bytes], list[str]]:
    """Step, numbers and warnings of what a resumed run would start from."""
    said: list[str] = []
    store = BucketStore(Bucket(url), work / "restored" / "checkpoints", owner=99)
    opened = Checkpoints(work / "restored", warn=said.append, store=store)
    state, _ = opened.restore(programs().fresh_state(CONFIG))
    opened.close()
    leaves = jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    return int(state.step), [np.asarray(leaf).tobytes() for leaf in leaves], said


def _numbers(url: str, work: Path, keep: int) -> list[bytes]:
    """The numbers of an older checkpoint, restored while the newer ones are set aside."""
    bucket = Bucket(url)
    store = BucketStore(bucket, work / "aside")
    newer = [step for step in store.steps() if step > keep]
    for step in newer:
        store.set_aside(step)
    step, numbers, _ = _restored(url, work)
    assert step == keep
    for step in newer:
        _repair(bucket, step)
    return numbers


def failing_store(tries: int, work: Path, seed: int = 0) -> Tally:
    """Runs while a tenth of all requests fail; and while all fail for longer than is waited."""
    tally = Tally(
        "an object store that answers 503 or 429, drops, delays or cuts off answers, or is gone",
        "the run ends bitwise equal; each save that failed is reported in one line",
    )
    expected = reference(work)
    kinds = [(scheme, kind) for kind in (*KINDS, "outage") for scheme in SCHEMES]
    with contextlib.ExitStack() as stack:
        stores = {scheme: stack.enter_context(_opened(scheme, work)) for scheme in SCHEMES}
        import gcsfs.retry  # now that the variables are set that it reads

        stack.enter_context(mock.patch.object(bucket_module, "FIRST_DELAY", 0.05))
        stack.enter_context(mock.patch.object(gcsfs.retry, "asyncio", SHORT_PAUSES))
        for scheme, kind in kinds[: tries or None]:
            store, name = stores[scheme], f"failing {kind}"
            said = _with_faults(store, store.url(name), kind, random.Random(seed))
            store.fault = lambda method, path: ""
            failed = [line for line in said if SAVE_FAILED in line]
            fine = _outcome(store.url(name)) == expected and not any("\n" in each for each in said)
            expect_failed = kind == "outage"
            tally.count(fine and bool(failed) == expect_failed, f"{scheme} {kind}: {said[-3:]}")
    return tally


def _with_faults(store: Store, url: str, kind: str, rng: random.Random) -> list[str]:
    """What a complete run says while the store fails."""
    if kind != "outage":
        store.fault = lambda method, path: kind if rng.random() < SHARE else ""
        return complete(url)
    began, said = [], []

    def gone(method: str, path: str) -> str:
        """From the first object of a checkpoint on, until a save has failed."""
        if "checkpoints" in path and method in ("PUT", "POST"):
            began.append(path)
        return "503" if began and not any(SAVE_FAILED in line for line in said) else ""

    store.fault = gone
    with mock.patch.object(bucket_module, "PATIENCE", 0.5):
        return complete(url, said=said)


def pairs_in_a_bucket(tries: int, work: Path, seed: int = 0, heartbeat: int = 20) -> Tally:
    """A signal to one of two processes without a common disk: a restart ends bitwise equal."""
    tally = Tally(
        "SIGKILL or SIGTERM to one of two processes of a run in a bucket",
        "the other ends; the restart bitwise equal to two processes on one disk",
    )
    assert [code for code, _ in pair(work / "pair", heartbeat)] == [0, 0]
    expected = outcome(work / "pair")
    rng = random.Random(seed)
    with _opened("s3", work) as store:
        turn = missed = 0
        while tally.tried < tries:
            url = store.url(f"pair-{turn}-{missed}")
            kind, victim = (signal.SIGKILL, signal.SIGTERM)[turn % 2], (turn // 2) % 2
            processes = together(url, heartbeat, script=MARKED)
            wait_for_first_step(processes[victim])
            time.sleep(rng.uniform(0.0, 0.5))
            if processes[victim].poll() is not None:  # it was faster: not counted
                assert [finish(process)[0] for process in processes] == [0, 0]
                missed += 1
                assert missed < 3 * tries
                continue
            processes[victim].send_signal(kind)
            codes = [finish(process, heartbeat + 60)[0] for process in processes]
            again = [code for code, _ in pair(url, heartbeat)]
            ended = (
                codes[1 - victim] < 0 or codes[1 - victim] in (EXIT_STOPPED, EXIT_HUNG)
                if kind == signal.SIGKILL
                else codes in ([EXIT_STOPPED] * 2, [0, 0])
            )
            fine = ended and again == [0, 0] and _outcome(url) == expected
            tally.count(fine, f"{kind.name} to process {victim}: exits {codes}, again {again}")
            turn += 1
    return tally
