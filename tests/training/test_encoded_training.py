"""Training on photographs: exact resume, sizes by step, corrupt images, honest throughput."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.data import EncodedSplit, dataset_info
from deepjax.data.loader import batch_index, read_examples
from deepjax.errors import InputError, NonFiniteError
from deepjax.models import create_model
from deepjax.training import RunOptions, compile_training, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.config import replace_options, train_config
from deepjax.training.decode_errors import DecodeErrorLog
from deepjax.training.evaluator import split_row
from deepjax.training.metrics.metrics_log import TIMES, read_rows
from deepjax.training.run_directory.data_identity import pin_dataset
from tests.data.archives import DAMAGED, small_imagenet
from tests.faults.kills import pair
from tests.faults.runs import finish, outcome, start
from tests.faults.spread import apart, mesh_of, on_host

# Little to compile.
THIN = functools.partial(create_model, "cifar_plain20", width=2, stages=(1, 1, 1))
FIELDS = {
    "batch_size": 16,
    "epochs": 2,
    "image_size": 16,
    "on_decode_error": "skip",
    "max_decode_errors": DAMAGED,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """64 training images, two of them damaged, and 24 for testing: 4 steps an epoch."""
    folder = tmp_path_factory.mktemp("data")
    return small_imagenet(folder, damaged=True), RunOptions(data_dir=str(folder), save_every=2)


@pytest.fixture(scope="module")
def config(prepared):
    return train_config("own/thin", prepared[0].name, **FIELDS)


@pytest.fixture(scope="module")
def programs(prepared, config):
    return compile_training(config, prepared[1], make=THIN)


@pytest.fixture(scope="module")
def whole(prepared, config, programs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, train(config, out, prepared[1], programs=programs)


def rows_of(out: Path) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_rows(out / "metrics.jsonl")
    ]


def of_kind(kind: str, out: Path) -> list[dict]:
    return [row for row in rows_of(out) if row["kind"] == kind]


def test_damaged_images_are_logged_once_by_name_and_training_ends(whole):
    """The training error is over as many images as the test error; a corrupt image is an error."""
    out, result = whole
    damaged = [row for row in rows_of(out) if row["kind"] == "damaged"]
    assert len({row["image"] for row in damaged}) == len(damaged) == DAMAGED
    assert {row["split"] for row in damaged} == {"train"}
    assert any("truncated" in row["why"] for row in damaged) and any(
        "neither" in row["why"] for row in damaged
    )
    assert (result.steps, result.train_images, result.test_images) == (8, 24, 24)
    assert "test_top5_error" in read_rows(out / "metrics.jsonl")[-1]


@pytest.mark.system
@pytest.mark.parametrize("at", [1, 3, 4, 7])
def test_interrupted_at_any_step_it_ends_in_the_same_bits(
    at, whole, prepared, config, programs, tmp_path
):
    def interrupt(step: int, total: int, note: str) -> None:
        if step >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, prepared[1], programs=programs, report=interrupt)
    train(config, tmp_path, prepared[1], programs=programs)
    assert digest(tmp_path) == digest(whole[0])
    assert rows_of(tmp_path) == rows_of(whole[0])


@pytest.mark.parametrize(
    "fields", [{"on_decode_error": "halt"}, {"max_decode_errors": DAMAGED - 1}]
)
def test_damage_beyond_the_policy_halts_in_a_line(fields, prepared, config, programs, tmp_path):
    narrow = replace_options(config, **fields)
    split = dataclasses.replace(
        programs.train_split,
        on_decode_error=narrow.data.on_decode_error,
        budget=narrow.data.max_decode_errors,
    )
    strict = dataclasses.replace(programs, config=narrow, train_split=split)
    with pytest.raises(
        InputError,
        match=r"record \d+ is corrupt|2 images are corrupt, .* allowed: max_decode_errors, 1",
    ) as raised:
        train(narrow, tmp_path, prepared[1], programs=strict)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("there", ["", "other"])
def test_a_run_goes_on_with_the_data_set_that_it_began_with_alone(
    there, prepared, config, programs, tmp_path
):
    """A data set without a fingerprint may be any; one with another fingerprint is named."""
    moved = dataclasses.replace(
        programs, train_split=dataclasses.replace(programs.train_split, fingerprint="1" * 64)
    )
    pin_dataset(tmp_path, moved.train_split, moved.dataset)
    given = dataclasses.replace(
        programs, train_split=dataclasses.replace(programs.train_split, fingerprint=there)
    )
    if not there:
        pin_dataset(tmp_path, given.train_split, given.dataset)
        return
    with pytest.raises(
        InputError, match=r"is another one than this run began with .*choose another --output-dir"
    ):
        train(config, tmp_path, prepared[1], programs=given)


def test_exact_crops_are_those_of_evaluation(prepared, config, programs):
    """Pillow's at the centre, where nothing is drawn; fast ones are others."""
    still = replace_options(config, augment=False)
    exact = programs.batch_at(replace_options(still, resize_backend="pillow"), 0)["image"]
    size, share = still.input_shape[0], still.data.eval_crop
    ids = batch_index(len(programs.train_split), still.batch_size, still.seed, 0)
    np.testing.assert_array_equal(
        exact, read_examples(programs.train_split, ids.tolist(), size, share)["image"]
    )
    assert np.any(exact != programs.batch_at(still, 0)["image"])


def test_parameters_that_blow_up_halt_with_the_images(prepared, config, programs, tmp_path):
    step = programs.train_step

    def poisoned(state, batch):
        if int(state.step) == 3:
            state = state.replace(
                params=jax.tree.map(
                    lambda leaf: leaf * jnp.asarray(jnp.nan, leaf.dtype), state.params
                )
            )
        return step(state, batch)

    with pytest.raises(NonFiniteError, match=r"step 4 .*training images \d+, "):
        train(
            config,
            tmp_path,
            prepared[1],
            programs=dataclasses.replace(programs, train_step=poisoned),
        )


def test_every_epoch_tells_images_a_second_and_the_wait_for_data(whole):
    epochs = [row for row in read_rows(whole[0] / "metrics.jsonl") if row["kind"] == "epoch"]
    assert [row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1 for row in epochs] == [
        True,
        True,
    ]


def test_an_image_that_cannot_be_decoded_counts_as_an_error():
    """Six decoded images, two wrong, and two corrupt: 4 of 8 are errors, the loss is of six."""
    sums = {
        "loss": 12.0,
        "errors": 2.0,
        "top5_errors": 1.0,
        "images": 6.0,
        "auxiliary": {"4a": {"loss": 6.0, "errors": 3.0}},
    }
    assert split_row("test", sums, 2) == {
        "test_error": 4 / 8,
        "test_loss": 2.0,
        "test_images": 8,
        "test_top5_error": 3 / 8,
        "test_auxiliary": {"4a": {"error": 5 / 8, "loss": 1.0}},
    }


def test_damage_is_told_once_over_restarts_and_forgotten_when_going_back():
    rows, said = [{"kind": "damaged", "step": 2, "split": "train", "image": 7}], []
    split = EncodedSplit(dataset_info("digits"), "train", [], "skip", budget=3)
    damages = DecodeErrorLog(split, rows, said.append)
    written = []
    damages.note(5, "train", [(7, "cut"), (9, "cut")])
    damages.note(6, "test", [(7, "cut")])
    damages.flush(written.append)
    assert [(row["step"], row["split"], row["image"]) for row in written] == [
        (5, "train", 9),
        (6, "test", 7),
    ]
    assert said[-1].endswith("3 of 3 such images")
    damages.rewind(5)
    damages.note(6, "test", [(7, "cut")])
    damages.flush(written.append)
    assert len(written) == 3
    damages.note(7, "train", [(1, "cut")])
    with pytest.raises(
        InputError,
        match=r"4 images are corrupt, .* record 1 of split 'train'; allowed: max_decode_errors, 3",
    ):
        damages.flush(written.append)


@pytest.mark.parametrize("sizes", [pytest.param((16, 24), marks=pytest.mark.slow), (24, 16, 24)])
def test_image_sizes_follow_the_step_with_a_program_each(
    sizes, prepared, config, tmp_path, monkeypatch
):
    resizing = replace_options(
        config, image_size=0, progressive_sizes=sizes, eval_size=32, epochs=3
    )
    built = compile_training(resizing, prepared[1], make=THIN)
    assert sorted({*built.train_steps_by_size, 24}) == [16, 24]
    seen = []
    put = type(built.partitioner).put_batch

    def watched(spread, batch):
        seen.append((batch["image"].shape[1], "mask" in batch))
        return put(spread, batch)

    monkeypatch.setattr(type(built.partitioner), "put_batch", watched)
    train(resizing, tmp_path, prepared[1], programs=built)
    trained = [size for size, evaluates in seen if not evaluates]
    assert trained == [sizes[step * len(sizes) // 12] for step in range(12)]
    assert {size for size, evaluates in seen if evaluates} == {32}


def test_sets_of_one_size_are_resized_on_the_device_by_the_step(tmp_path):
    config = train_config("own/thin", batch_size=240, epochs=1, progressive_sizes=(8, 12))
    built = compile_training(config, make=THIN)
    assert list(built.train_steps_by_size) == [8]
    assert [built.train_step_at(step) is built.train_step for step in range(5)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert train(config, tmp_path, programs=built).steps == 5


@pytest.mark.eight_devices
def test_batches_on_the_devices_are_those_of_the_host(config, programs):
    """Each device its images; `batch_at` gives the same batch whole, at any step."""
    batches = programs.batches(config)
    for step in range(2):
        batch = next(batches)
        on_host = programs.batch_at(config, step)
        np.testing.assert_array_equal(batch["image"], on_host["image"])
        np.testing.assert_array_equal(batch["label"], on_host["label"])
        assert len(batch["image"].sharding.device_set) == 8
    batches.close()
    assert isinstance(programs.train_split, EncodedSplit)


@pytest.mark.eight_devices
def test_one_device_trains_on_photographs_as_eight_do(
    prepared, config, programs, whole, tmp_path, monkeypatch
):
    """The same pictures and damage; a step from the same state, up to rounding."""
    monkeypatch.setattr("deepjax.training.build.make_mesh", lambda: mesh_of(1))
    alone = compile_training(config, prepared[1], make=THIN)
    assert (alone.partitioner.mesh.size, programs.partitioner.mesh.size) == (1, 8)
    after = []
    for each in (alone, programs):
        state, batches = each.fresh_state(config), each.batches(config)
        before = on_host(state)
        state, _ = each.train_step(state, next(batches))
        batches.close()
        after.append(on_host(state))
    assert apart(after[0], after[1]) <= 1e-5 < apart(after[0], before)
    result = train(config, tmp_path / "alone", prepared[1], programs=alone)
    assert (result.steps, result.train_images, result.test_images) == (
        whole[1].steps,
        whole[1].train_images,
        whole[1].test_images,
    )
    assert of_kind("damaged", tmp_path / "alone") == of_kind("damaged", whole[0]) != []


@pytest.mark.slow
def test_two_processes_end_in_the_bits_of_two_devices_and_tell_all_damage(prepared, tmp_path):
    """Each reads its half of every batch, and the first one's log has what the other found."""
    dataset, options = prepared
    flags, how = as_command(dataset, options, **FIELDS)
    assert finish(start(tmp_path / "devices", *flags, JAX_NUM_CPU_DEVICES="2", **how))[0] == 0
    ends = pair(tmp_path / "processes", 60, *flags, **how)
    assert [code for code, _ in ends] == [0, 0], ends
    assert outcome(tmp_path / "processes") == outcome(tmp_path / "devices")


@pytest.mark.slow
def test_an_image_that_one_of_two_processes_cannot_read_ends_both_with_its_name(prepared, tmp_path):
    """The other would wait for it in the step until the heartbeat timeout: here an hour."""
    flags, how = as_command(
        *prepared, **FIELDS | {"on_decode_error": "halt", "max_decode_errors": 0}
    )
    ends = pair(tmp_path, 3600, *flags, **how)
    assert [code for code, _ in ends] == [2, 2], ends
    lines = {line for _, said in ends for line in said.splitlines() if line.startswith("error: ")}
    assert len(lines) == 1 and "is corrupt" in lines.pop()


def as_command(dataset, options, **fields):
    """Flags and environment of a run of two epochs as processes of their own."""
    flags = ["--dataset", dataset.name, "--epochs", "2", "--save-every", "2"]
    for name, value in fields.items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags, {
        "script": "tests/training/photographs_run.py",
        "SMALL_IMAGENET": dataset.name,
        "TFDS_DATA_DIR": options.data_dir,
    }
