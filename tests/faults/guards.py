"""One quick check for each promise, in this process: it holds while its guard is in place."""

import contextlib
import errno
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from orbax.checkpoint._src.serialization import ocdbt_utils
from PIL import Image

from deepjax.data import dataset_info, splits
from deepjax.errors import InputError, Stopped
from deepjax.training import train
from deepjax.training.checkpoint import manager
from deepjax.training.checkpoint.inspect import digest, steps_of
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.guard_policy import Policy
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.preemption import EXIT_HUNG, watchdog
from deepjax.training.run_directory.run_lock import NAME as LOCK
from deepjax.training.run_directory.run_lock import hold
from deepjax.training.step.guard import SPIKE_WARMUP, init_guard, judge
from deepjax.training.step.state import TrainState
from tests.faults.runs import CONFIG, OPTIONS, complete, programs

FULL = OSError(errno.ENOSPC, "No space left on device")


def state_at(step: int) -> TrainState:
    """The first state of the runs, which says that it is of another step."""
    return programs().fresh_state(CONFIG).replace(step=jnp.asarray(step, jnp.int32))


def stops_at_sigterm(work: Path) -> bool:
    """SIGTERM at step 1 ends the run after it, with a checkpoint of the step that it names."""

    def terminated(step: int, total: int, note: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    # SIGTERM must not end the test process when the run ignores it.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        train(CONFIG, work, OPTIONS, programs=programs(), report=terminated, say=lambda line: None)
    except Stopped as stopped:
        newest = next(reversed(steps_of(work / "checkpoints")), 0)
        return newest > 0 and f"after step {newest} of" in str(stopped)
    finally:
        signal.signal(signal.SIGTERM, before)
    return False


def clears_partial_saves(work: Path) -> bool:
    """What an interrupted save left is gone once the run is opened again."""
    left = work / "checkpoints" / "4.partial"
    left.mkdir(parents=True)
    Checkpoints(work, warn=lambda line: None).close()
    return not left.exists()


def saves_the_last_step(work: Path) -> bool:
    """The last step, which is no multiple of the steps between checkpoints, has one."""
    complete(work)
    return CONFIG.total_steps % OPTIONS.save_every != 0 and digest(work)[0] == CONFIG.total_steps


def _saved(
    work: Path, metrics: dict[int, float | None], said: list[str], **options: int
) -> Checkpoints:
    opened = Checkpoints(work, warn=said.append, **options)
    for step, metric in metrics.items():
        opened.save(state_at(step), {"next_index": step}, metric)
    opened.wait_until_finished()
    return opened


def abandons_the_branch(work: Path) -> bool:
    """A rollback before step 3 deletes the later checkpoints of the abandoned branch."""
    opened = _saved(work, {2: None, 4: None}, [], keep_last=5)
    state, _ = opened.restore(programs().fresh_state(CONFIG), before=3)
    opened.close()
    return int(state.step) == 2 and steps_of(opened.folder) == [2]


def keeps_the_best(work: Path) -> bool:
    """The checkpoint of the lowest metric stays beside the newest."""
    opened = _saved(work, {1: 0.5, 2: 0.1, 3: 0.3, 4: 0.4}, [], keep_last=1, keep_best=1)
    opened.close()
    return steps_of(opened.folder) == [2, 4]


def tells_of_a_failed_save(work: Path) -> bool:
    """A save on a full disk gives a warning and leaves nothing behind; the next one succeeds."""
    said: list[str] = []
    with mock.patch.object(manager, "write_manifest", side_effect=FULL):
        opened = _saved(work, {1: None}, said)
    opened.save(state_at(2), {"next_index": 2})
    opened.close()
    names = sorted(path.name for path in opened.folder.iterdir())
    return (
        len(said) == 1
        and "could not be written" in said[0]
        and "No space left" in said[0]
        and names == ["2"]
    )


def opens_what_it_saved(work: Path) -> bool:
    """A save that Orbax did not finish, and says nothing of, has failed."""
    said: list[str] = []
    with mock.patch.object(ocdbt_utils, "merge_ocdbt_per_process_files", _nothing):
        opened = _saved(work, {1: None}, said)
    opened.close()
    return opened.steps() == [] and len(said) == 1 and "could not be written" in said[0]


async def _nothing(*_: object, **__: object) -> None:
    """In place of putting the files of all processes together."""


def refuses_a_second_run(work: Path) -> bool:
    """A run directory that this process has locked is not trained in, and not left changed."""
    with hold(work / "run", lambda line: None):
        try:
            complete(work / "run")
        except InputError as error:
            return "is in use by process" in str(error) and [
                path.name for path in (work / "run").iterdir()
            ] == [LOCK]
    return False


def counts_every_image_once(work: Path) -> bool:
    """The final evaluation counts each image of the data set once, and no padding of batches."""
    complete(work)
    final, digits = read_rows(work / "metrics.jsonl")[-1], dataset_info("digits")
    return (final["train_images"], final["test_images"]) == (digits.train_size, digits.test_size)


def refuses_bombs(work: Path) -> bool:
    """An image larger than the data set's is refused by its header."""
    file = io.BytesIO()
    Image.new("L", (3000, 3000)).save(file, "PNG")
    with contextlib.suppress(InputError):
        splits._read([{"image": file.getvalue(), "label": 1}], 0, dataset_info("digits"), "train")
        return False
    return True


def leaves_spikes_out(work: Path) -> bool:
    """A loss a hundred times its mean is left out, and no other."""
    guard, policy = init_guard(), Policy("skip", spike_sigmas=6.0)
    step_of = jax.jit(
        lambda guard, step, loss: judge(
            guard, policy, step, jnp.asarray(True), loss, {"kernel": jnp.ones(2)}
        )
    )
    spike = SPIKE_WARMUP + 5
    left_out = []
    for step in range(spike + 5):
        loss = 200.0 if step == spike else 2.0 + 0.1 * (-1) ** step
        counts, guard = step_of(guard, jnp.asarray(step, jnp.int32), jnp.asarray(loss, jnp.float32))
        left_out += [] if counts else [step]
    return left_out == [spike]


def ends_what_hangs(work: Path) -> bool:
    """Without a beat the process would be ended with the code for that."""
    ends: list[int] = []
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        watchdog(0.1, ends.append),
    ):
        time.sleep(0.6)
    return ends == [EXIT_HUNG]


def refuses_without_whole(work: Path) -> bool:
    """With every checkpoint damaged a run says so and does not begin anew by itself."""
    opened = _saved(work, {1: None, 2: None}, [])
    for path in opened.folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"x" + path.read_bytes()[1:])
    with contextlib.suppress(InputError):
        opened.restore(programs().fresh_state(CONFIG))
        return False
    opened.close()
    return True


CHECKS: tuple[Callable[[Path], bool], ...] = (
    stops_at_sigterm,
    clears_partial_saves,
    saves_the_last_step,
    abandons_the_branch,
    keeps_the_best,
    tells_of_a_failed_save,
    opens_what_it_saved,
    refuses_a_second_run,
    counts_every_image_once,
    refuses_bombs,
    leaves_spikes_out,
    ends_what_hangs,
    refuses_without_whole,
)
