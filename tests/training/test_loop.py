"""Runs from end to end: exact resume after any interruption, honest logs, clear ends."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from deepjax.errors import InputError, NonFiniteError, Stopped
from deepjax.training import RunOptions, TrainConfig, compile_training, train
from deepjax.training.checkpoint.inspect import digest, named_leaves, read_state
from deepjax.training.metrics.metrics_log import TIMES, read_rows
from tests.training.metrics.event_files import logged_values

CONFIG = TrainConfig(model="cifar_resnet20", width=4, batch_size=240, epochs=2)  # 5 steps an epoch
EVERY_2 = RunOptions(save_every=2)
SCRIPT = Path(__file__).parents[2] / "experiments" / "train.py"


@pytest.fixture(scope="module")
def programs():
    return compile_training(CONFIG)


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    return out, train(CONFIG, out, EVERY_2, programs=programs)


def rows_without_times(out: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in TIMES} for row in read_rows(out / "metrics.jsonl")
    ]


def test_a_run_directory_tells_what_happened(whole):
    out, result = whole
    assert json.loads((out / "config.json").read_text())["model"] == "cifar_resnet20"
    rows = read_rows(out / "metrics.jsonl")
    assert [row["kind"] for row in rows] == ["first", "epoch", "epoch", "final"]
    assert len(rows[0]["gradient_norms"]) == 20
    assert (result.steps, result.train_images, result.test_images) == (10, 1437, 360)


def test_the_same_command_again_says_that_it_is_done(whole, programs):
    out, result = whole
    again = train(CONFIG, out, programs=programs)
    assert again.was_done
    assert dataclasses.replace(again, was_done=False, resumed_at=0) == result
    assert (result.steps, result.digest) == digest(out)


@pytest.mark.parametrize(
    "at",
    [pytest.param(at, marks=() if at in (1, 4, 7) else pytest.mark.slow) for at in range(1, 10)],
)
def test_interrupted_at_any_step_it_ends_in_the_same_bits(at, whole, programs, tmp_path):
    """Stopped after step `at`, between checkpoints or on one; the logs are the same too."""

    def interrupt(step: int, total: int, note: str) -> None:
        if step >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path, EVERY_2, programs=programs, report=interrupt)
    result = train(CONFIG, tmp_path, EVERY_2, programs=programs)
    assert result.resumed_at <= 10
    assert digest(tmp_path) == digest(whole[0])
    assert rows_without_times(tmp_path) == rows_without_times(whole[0])


@pytest.mark.system
def test_sigterm_saves_and_resumes(whole, programs, tmp_path):
    def stop(step: int, total: int, note: str) -> None:
        if step >= 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="the same command resumes") as stopped:
        train(
            CONFIG,
            str(tmp_path),
            dataclasses.replace(EVERY_2, verify_saves="full"),
            programs=programs,
            report=stop,
        )
    step, saved = digest(tmp_path)
    assert f"after step {step} of 10, saved (digest {saved[:12]})" in str(stopped.value)
    train(CONFIG, tmp_path, EVERY_2, programs=programs)
    assert digest(tmp_path) == digest(whole[0])


def test_another_configuration_is_refused_and_nothing_changes(whole, programs):
    out, _ = whole
    before = digest(out)
    with pytest.raises(InputError, match=r"epochs is 3, there 2"):
        train(dataclasses.replace(CONFIG, epochs=3), out)
    assert digest(out) == before


def test_results_whose_configuration_was_deleted_are_refused(whole, programs, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds metrics.jsonl but no config.json"):
        train(dataclasses.replace(CONFIG, learning_rate=0.2), tmp_path / "run", programs=programs)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        path.name for path in whole[0].iterdir()
    } - {"config.json"}


def test_a_run_that_is_done_is_only_read(whole, programs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "deepjax.training.run_directory.run_identity.hold", lambda *_: pytest.fail("locked")
    )
    assert train(CONFIG, whole[0], EVERY_2, programs=programs).was_done


@pytest.mark.system
def test_the_digest_sees_any_change(whole, programs, tmp_path):
    other = dataclasses.replace(CONFIG, seed=1)
    train(other, tmp_path, programs=programs)
    assert digest(tmp_path)[1] != digest(whole[0])[1]


@pytest.mark.system
def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used(whole, programs, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    # As if killed before the final row.
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    for path in (tmp_path / "run" / "checkpoints" / "10" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            os.truncate(path, path.stat().st_size // 2)
    said = []
    result = train(CONFIG, tmp_path / "run", EVERY_2, programs=programs, say=said.append)
    assert result.resumed_at == 8
    assert "checkpoints/10 is corrupt: state/" in said[0] and "moved to 10.damaged" in said[0]
    assert digest(tmp_path / "run") == digest(whole[0])
    assert rows_without_times(tmp_path / "run") == rows_without_times(whole[0])


@pytest.mark.system
def test_training_that_blows_up_halts_with_step_and_images(programs, tmp_path, monkeypatch):
    """Parameters that turn NaN before step 4, as an overflow would leave them."""
    config = dataclasses.replace(CONFIG, learning_rate=9e3)
    weights = compile_training(config)
    step = weights.train_step

    def poisoned(state, batch):
        if int(state.step) == 3:
            state = state.replace(
                params=jax.tree.map(
                    lambda leaf: leaf * jnp.asarray(jnp.nan, leaf.dtype), state.params
                )
            )
        return step(state, batch)

    with pytest.raises(NonFiniteError, match=r"step 4 .*training images \d+, .*learning_rate"):
        train(config, tmp_path, EVERY_2, programs=dataclasses.replace(weights, train_step=poisoned))
    assert read_rows(tmp_path / "metrics.jsonl")[-1] == {"kind": "halted", "step": 4}


def test_tensorboard_has_each_step_of_an_interrupted_run_once(whole, programs, tmp_path):
    """The mean of the losses of an epoch is its running loss; nothing else changes."""
    options = dataclasses.replace(EVERY_2, tensorboard=True, histogram_every=4)

    def interrupt(step: int, total: int, note: str) -> None:
        if step >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path, options, programs=programs, report=interrupt)
    train(CONFIG, tmp_path, options, programs=programs)
    assert digest(tmp_path) == digest(whole[0])
    assert rows_without_times(tmp_path) == rows_without_times(whole[0])
    found = logged_values(tmp_path / "tensorboard")
    losses = dict(found["step/loss"])
    assert [step for step, _ in found["step/loss"]] == [*range(1, 11)]
    for row in read_rows(tmp_path / "metrics.jsonl"):
        if row["kind"] == "epoch":
            of_epoch = [losses[step] for step in range(row["step"] - 4, row["step"] + 1)]
            assert statistics.fmean(of_epoch) == pytest.approx(row["running_loss"], rel=1e-5)
    first = read_rows(tmp_path / "metrics.jsonl")[0]["gradient_norms"]
    norm = dict(found["step/gradient_norm"])[1]
    assert norm == pytest.approx(sum(each**2 for each in first.values()) ** 0.5, rel=1e-5)
    params = read_state(tmp_path, 8)[1]["params"]
    for name, leaf in named_leaves(params).items():
        (four, eight) = found[f"params/{name}"]
        assert (four[0], eight[0], eight[1].num) == (4, 8, leaf.size)
        assert (eight[1].min, eight[1].max) == (leaf.min(), leaf.max())


@pytest.mark.eight_devices
def test_eight_devices_must_share_the_batch():
    with pytest.raises(InputError, match="a multiple of the 8 devices"):
        compile_training(dataclasses.replace(CONFIG, batch_size=100))


def command(out: Path) -> list[str]:
    options = [
        "--model",
        "cifar_resnet20",
        "--dataset",
        "digits",
        "--width",
        "4",
        "--batch-size",
        "128",
        "--epochs",
        "3",
        "--save-every",
        "3",
    ]
    return [sys.executable, str(SCRIPT), *options, "--output-dir", str(out)]


@pytest.mark.system
@pytest.mark.parametrize(
    "room", [100, 20_000], ids=["at the start", "in the midst of a checkpoint"]
)
def test_a_disk_that_is_full_is_an_error_of_one_line(room, tmp_path):
    """A limit on file sizes stands in for a full disk: config.json or a checkpoint is too large."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = subprocess.run(
        command(tmp_path / "run"), preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cannot write")
    assert room > 100 or len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr  # Orbax's threads would leave dozens
