"""Runs on resident data are those of the loop: bitwise on one CPU device, wherever they stop.

Over several devices XLA sums in another order inside the loop.
"""

import dataclasses
import re

import jax
import numpy as np
import pytest

from deepjax.data import Split
from deepjax.errors import InputError, NonFiniteError
from deepjax.training import RunOptions, TrainConfig, build, compile_training, train, train_config
from deepjax.training import steps as steps_module
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.config import options_of
from deepjax.training.distributed.sharding import make_mesh
from deepjax.training.metrics.metrics_log import TIMES, read_rows
from tests.training.metrics.event_files import logged_values

CONFIG = TrainConfig(model="cifar_resnet20", width=4, batch_size=240, epochs=2)  # 5 steps an epoch
EVERY_2 = RunOptions(save_every=2)
RESIDENT = dataclasses.replace(EVERY_2, resident=True)
TIMED = re.compile("images_per_second|data_wait|seconds|_time/")
bitwise = pytest.mark.system  # compiled as users do


def on_one_device(options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
        return compile_training(CONFIG, options)


@pytest.fixture(scope="module")
def streamed():
    return on_one_device(EVERY_2)


@pytest.fixture(scope="module")
def resident():
    return on_one_device(RESIDENT)


@pytest.fixture(scope="module")
def expected(streamed, tmp_path_factory):
    out = tmp_path_factory.mktemp("streamed")
    train(CONFIG, out, EVERY_2, programs=streamed)
    return outcome(out)


@pytest.fixture(params=[1e-9, 0.1, 1e9], ids=["one at a time", "some", "all"])
def _seconds(request, monkeypatch):
    monkeypatch.setattr(steps_module, "SECONDS", request.param)


def outcome(out):
    rows = read_rows(out / "metrics.jsonl")
    return digest(out), [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@bitwise
@pytest.mark.usefixtures("_seconds")
def test_it_is_the_run_of_the_loop_with_any_number_of_steps_at_once(resident, expected, tmp_path):
    train(CONFIG, tmp_path, RESIDENT, programs=resident)
    assert outcome(tmp_path) == expected


@bitwise
@pytest.mark.parametrize("first", ["streamed", "resident"])
def test_each_kind_resumes_the_other(streamed, resident, expected, tmp_path, first):
    programs = {"streamed": (streamed, EVERY_2), "resident": (resident, RESIDENT)}
    second = next(each for name, each in programs.items() if name != first)

    def interrupt(done, total, note):
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path, programs[first][1], programs=programs[first][0], report=interrupt)
    assert train(CONFIG, tmp_path, second[1], programs=second[0]).resumed_at == 2
    assert outcome(tmp_path) == expected


@bitwise
def test_instruments_and_loggers_see_the_same_steps(streamed, resident, tmp_path):
    seen = {}
    for name, programs, options in (("a", streamed, EVERY_2), ("b", resident, RESIDENT)):
        out = tmp_path / name
        more = {"tensorboard": True, "probe_every": 4, "histogram_every": 3, "log_every": 2}
        train(CONFIG, out, dataclasses.replace(options, **more), programs=programs)
        values = logged_values(out / "tensorboard")
        named = {key: str(each) for key, each in values.items() if not TIMED.search(key)}
        seen[name] = outcome(out), named
    assert seen["a"] == seen["b"]
    assert [row["kind"] for row in seen["b"][0][1]].count("trace") == 3  # before steps 1, 5, 9


@bitwise
def test_progressive_sizes_have_a_program_each(tmp_path):
    """Three sizes of ten steps: their parts do not end with epochs, nor with checkpoints."""
    config = train_config(**(options_of(CONFIG) | {"progressive_sizes": (6, 8, 10)}))
    found = []
    for options in (EVERY_2, RESIDENT):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
            programs = compile_training(config, options)
        out = tmp_path / str(len(found))
        train(config, out, options, programs=programs)
        found.append(outcome(out))
    assert found[0] == found[1]


@bitwise
@pytest.mark.parametrize("policy", ["halt", "skip", "rollback"])
def test_a_bad_step_among_several_is_treated_alike(streamed, resident, tmp_path, policy):
    """The label of an image that step 4 uses is no class."""
    config = train_config(**(options_of(CONFIG) | {"on_nonfinite": policy}))
    labels = streamed.train_split.labels.copy()
    labels[streamed.example_ids(config, 3)[0]] = -1
    data = resident.resident.data | {"label": jax.numpy.asarray(labels)}
    split = Split(streamed.train_split.images, labels)
    found = []
    for programs, options in ((streamed, EVERY_2), (resident, RESIDENT)):
        on_device = programs.resident and dataclasses.replace(programs.resident, data=data)
        changed = dataclasses.replace(
            programs, config=config, train_split=split, resident=on_device
        )
        out = tmp_path / str(len(found))
        try:
            train(config, out, options, programs=changed, say=lambda line: None)
            found.append(outcome(out))
        except NonFiniteError as error:
            found.append((str(error), read_rows(out / "metrics.jsonl")[-1]))
    assert found[0] == found[1]


def test_pmap_is_refused():
    with pytest.raises(InputError, match="resident is True; allowed: False under strategy 'pmap'"):
        RunOptions(resident=True, strategy="pmap")


@pytest.mark.parametrize("fsdp", [False, True])
def test_several_devices_take_their_parts_of_each_batch(fsdp):
    """Each step from the same state, within 1e-5."""
    options = RunOptions(fsdp=fsdp)
    streamed = compile_training(CONFIG, options)
    resident = compile_training(CONFIG, dataclasses.replace(options, resident=True))
    steps = steps_module.ResidentSteps(resident, resident.resident, CONFIG)
    state, batches = streamed.fresh_state(CONFIG), streamed.batches(CONFIG)
    for done in range(3):
        found, _ = steps.take(jax.tree.map(jax.numpy.copy, state), done, 1)
        state, _ = streamed.train_step(state, next(batches))
        for one, other in zip(leaves(state), leaves(found), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    batches.close()


def leaves(state):
    return jax.device_get(jax.tree.leaves((state.params, state.batch_stats, state.opt_state)))
