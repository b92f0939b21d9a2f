"""`--profile A:B`: the trace has these steps, as `jax.profiler.ProfileData` reads them."""

import gzip
import json
from pathlib import Path

import jax
import pytest

from deepjax.errors import InputError
from deepjax.training import RunOptions, TrainConfig, compile_training, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from deepjax.training.metrics.profiler import remaining_profile

# Of the reader, under JAX 0.12 and Python 3.13; as an error it would abort the process.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
CONFIG = TrainConfig(model="cifar_resnet20", width=4, batch_size=240, epochs=2)  # 10 steps


@pytest.fixture(scope="module")
def programs():
    return compile_training(CONFIG)


@pytest.fixture(scope="module")
def run(programs, tmp_path_factory):
    """A run with a trace of the steps 4 to 6, and what it said."""
    out, said = tmp_path_factory.mktemp("profiled run"), []
    train(CONFIG, out, RunOptions(profile="3:6"), programs=programs, say=said.append)
    return out, said


def events(out: Path) -> list:
    """The events of the only trace of a run."""
    [path] = (out / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    return [event for plane in planes for line in plane.lines for event in line.events]


def traced_steps(out: Path) -> list[int]:
    return [dict(event.stats)["step_num"] for event in events(out) if event.name == "train"]


def test_the_trace_has_these_steps_and_the_parts_of_the_loop(run):
    out, said = run
    assert traced_steps(out) == [4, 5, 6]
    names = [event.name for event in events(out)]
    assert names.count("input") == 3 and "evaluation" in names  # after step 5
    [line] = said
    assert line.startswith("profile of steps 4 to 6: ")
    assert f"xprof --logdir '{out}/profile'" in line
    times = [row["time"]["instruments"] for row in read_rows(out / METRICS) if "time" in row]
    assert times[1] > 0 and times[2] == 0  # written after step 6, in the second epoch


def test_the_file_for_perfetto_has_the_steps_too(run):
    out, [line] = run
    [path] = (out / "profile").rglob("perfetto_trace.json.gz")
    assert f"(or open {path} in https://ui.perfetto.dev)" in line
    found = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "train" for event in found) == 3


def test_a_trace_changes_no_number(run, programs, tmp_path):
    train(CONFIG, tmp_path, programs=programs)
    assert digest(run[0]) == digest(tmp_path)


def test_an_interrupted_trace_is_written_and_the_resumed_run_takes_what_is_left(programs, tmp_path):
    options, said = RunOptions(profile="3:8", save_every=2), []

    def interrupt(step: int, total: int, note: str) -> None:
        if step >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path, options, programs=programs, report=interrupt, say=said.append)
    assert traced_steps(tmp_path) == [4, 5, 6]
    assert said.pop().startswith("profile of steps 4 to 6: ")
    (tmp_path / "profile").rename(tmp_path / "profile of the first start")
    resumed_at = train(CONFIG, tmp_path, options, programs=programs, say=said.append).resumed_at
    assert traced_steps(tmp_path) == [*range(resumed_at + 1, 9)]
    assert [line.split(":")[0] for line in said] == [
        "profile 3",
        f"profile of steps {resumed_at + 1} to 8",
    ]


def test_a_profiler_that_fails_is_a_warning(programs, tmp_path, monkeypatch):
    said = []

    def fail(*_, **__):
        raise RuntimeError("Profile has already been started.\nOnly one")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    train(CONFIG, tmp_path, RunOptions(profile="0:2"), programs=programs, say=said.append)
    assert said == [
        "warning: the profile failed: RuntimeError: Profile has already been started.; training "
        "continues without it"
    ]


@pytest.mark.parametrize("given", ["3:3", "6:3", "3", ":3", "3:", "-1:3", "a:b", "1:2:3"])
def test_empty_reversed_and_malformed_ranges_are_refused(given):
    with pytest.raises(InputError, match=f"profile is '{given}'; allowed: A:B with A below B"):
        RunOptions(profile=given)


def test_steps_that_the_run_does_not_have_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"profile is '8:11'; allowed: .* at most 10, the"):
        train(CONFIG, tmp_path / "run", RunOptions(profile="8:11"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("resumed_at", "left", "lines"),
    [
        (0, [3, 4, 5], []),
        (3, [3, 4, 5], []),
        (5, [5], ["profile 3:6: 5 steps are done already, so only steps 5:6 are traced"]),
        (6, [], ["profile 3:6: 6 steps are done already, so no trace is written"]),
        (9, [], ["profile 3:6: 9 steps are done already, so no trace is written"]),
    ],
)
def test_steps_that_are_past_are_said(resumed_at, left, lines):
    said = []
    assert [*remaining_profile(range(3, 6), resumed_at, said.append)] == left
    assert said == lines


def test_without_a_profile_nothing_is_said():
    assert not remaining_profile(RunOptions().profile_steps, 9, pytest.fail)
