"""A study end to end: pilots, runs, resumed, interrupted, refused, judged."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepjax.errors import InputError
from deepjax.study.arms.predictions import FILE as MISCLASSIFIED
from deepjax.study.arms.rates import SelectedRate, read_rates, write_rates
from deepjax.study.arms.runs import collect, is_finished
from deepjax.study.preset import Preset
from deepjax.study.runner import run_study
from deepjax.study.stats.intervals import PILOT_SEEDS
from deepjax.study.study import FIRST_SEED, PILOT_FIRST_SEED, Options, study_seeds, trained_arms
from deepjax.training.metrics.metrics_log import METRICS, TIMES
from deepjax.training.run_directory.run_lock import hold
from tests.study import toy

RATES = {"deep": SelectedRate(0.8, 0.01, 0.02), "shallow": SelectedRate(0.4, 0.01, 0.01)}


@pytest.fixture(scope="module")
def rates(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rates") / "rates.json"
    write_rates(path, "toy-small", RATES)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, rates) -> Path:
    """The directory of the judged study."""
    out = tmp_path_factory.mktemp("study") / "toy-small"
    run_study(toy.STUDY, Options("small", output_dir=out, rates=rates, jobs=2))
    return out


@pytest.fixture(scope="module")
def record(finished):
    return json.loads((finished / "result.json").read_text())


def arms_of(preset: str):
    return trained_arms(toy.STUDY, toy.STUDY.presets[preset], RATES)


def test_it_leaves_verdicts_report_and_figures(finished, record):
    assert {v["claim"]: v["outcome"] for v in record["verdicts"]} == {
        "Deep is worse.": "not trained",
        "The difference is a number.": "supported",
        "There are twelve steps.": "supported",
        "Two is more than one.": "supported",
        toy.CLAIMS[-1].text: "inconclusive",
    }
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and (finished / "rows.png").exists()
    for verdict in record["verdicts"]:
        assert verdict["claim"] in page
    assert "control: inconclusive, as it must be" in page
    assert record["seeds"] == [100, 101] == list(study_seeds(toy.STUDY.presets["small"]))


def test_arms_have_their_rates_and_the_repeated_one_other_seeds(finished, record):
    assert {name: arm["rate"] for name, arm in record["arms"].items()} == {
        "deep": 0.8,
        "shallow": 0.4,
        "shallow_again": 0.4,
    }
    arms = arms_of("small")
    assert arms["shallow_again"].seeds == (600, 601) and arms["shallow_again"].pilot == "shallow"
    assert record["arms"]["shallow"]["test_error"] != record["arms"]["shallow_again"]["test_error"]
    assert record["arms"]["deep"]["selection"] == {"train": 0.01, "test": 0.02}
    for name, arm in arms.items():
        result = collect(arm, finished)
        assert result is not None and result.errors("test") == record["arms"][name]["test_error"]


def test_every_seed_is_measured_on_its_own_runs(finished):
    for seed in (100, 101):
        assert json.loads((finished / "measured" / f"seed{seed}.json").read_text()) == {
            "steps": {"deep": 12},
            "seed": seed,
        }


def test_the_rules_were_recorded(finished):
    rules = json.loads((finished / "rules.json").read_text())
    assert list(rules) == [claim.text for claim in toy.CLAIMS]


def test_again_it_only_judges_and_draws(finished, record, rates, capsys):
    run_study(toy.STUDY, Options("small", output_dir=finished, rates=rates))
    assert "was done already" in capsys.readouterr().out
    after = json.loads((finished / "result.json").read_text())
    assert {k: v for k, v in after.items() if k != "command"} == {
        k: v for k, v in record.items() if k != "command"
    }


def test_a_seed_with_a_run_that_diverged_is_not_measured(finished, rates, tmp_path):
    out = tmp_path / "toy-small"
    shutil.copytree(finished, out)
    (out / "measured" / "seed100.json").unlink()
    run_dir = out / "runs" / "deep" / "lr0.8-seed100"
    (run_dir / MISCLASSIFIED).unlink()
    with (run_dir / METRICS).open("a") as rows:
        rows.write('{"kind": "halted", "step": 12}\n')
    run_study(toy.STUDY, Options("small", output_dir=out, rates=rates, jobs=1))
    assert not (out / "measured" / "seed100.json").exists()
    record = json.loads((out / "result.json").read_text())
    outcomes = {verdict["claim"]: verdict["outcome"] for verdict in record["verdicts"]}
    assert outcomes["There are twelve steps."] == "inconclusive"
    assert record["arms"]["deep"]["test_error"][0] == pytest.approx(0.9)  # it guesses


def test_the_quick_preset_gives_no_verdicts(tmp_path, capsys):
    """At its own rate, without files of rates; one process."""
    run_study(toy.STUDY, Options(output_dir=tmp_path, jobs=1))
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["verdicts"] == [] and record["seeds"] == [0, 1]
    assert {arm["rate"] for arm in record["arms"].values()} == {0.8}
    assert not (tmp_path / "rules.json").exists()
    assert "This preset gives no verdicts" in capsys.readouterr().out


def test_pilots_select_the_rates_of_the_judged_study(tmp_path, capsys):
    """On a grid whose last rate is the best one, which is therefore extended."""
    pilots = Options("small", pilots=True, output_dir=tmp_path / "toy-small-pilots", jobs=2)
    run_study(toy.STUDY, pilots)
    assert "shallow                  rate 0.8; its choice leaves" in capsys.readouterr().out
    found = read_rates(tmp_path / "toy-small-pilots" / "rates.json")
    assert {name: rate.rate for name, rate in found.items()} == {"deep": 0.8, "shallow": 0.8}
    record = json.loads((tmp_path / "toy-small-pilots" / "pilots.json").read_text())
    assert list(record["arms"]["deep"]["errors"]["test"]) == ["0.2", "0.4", "0.8", "1.6"]
    # The complete study has run on these seeds, so that measured claims have a power too.
    measured = pilots.output_dir / "measured"
    assert len(list(measured.iterdir())) == PILOT_SEEDS
    assert set(record["power"]) == {"Deep is worse.", "There are twelve steps."}
    assert record["power"]["There are twelve steps."]["power"] == 1.0
    first = PILOT_FIRST_SEED
    assert {path.name for path in (pilots.output_dir / "runs" / "deep").glob("lr0.8-*")} == {
        f"lr0.8-seed{seed}" for seed in range(first, first + PILOT_SEEDS)
    }
    run_study(toy.STUDY, pilots)  # nothing to run
    again = json.loads((tmp_path / "toy-small-pilots" / "pilots.json").read_text())
    assert again["wall_seconds"] == record["wall_seconds"]
    trained = trained_arms(toy.STUDY, toy.STUDY.presets["small"], found)
    assert trained["shallow_again"].rate == 0.8
    assert trained["shallow_again"].selection == trained["shallow"].selection


def test_without_a_selected_rate_it_says_what_to_do(tmp_path, rates):
    study = dataclasses.replace(toy.STUDY, name="other")
    with pytest.raises(
        InputError, match=r"other: no learning rate .* arm 'deep'; run the pilots first, with --pi"
    ):
        run_study(study, Options("small", output_dir=tmp_path / "study"))
    with pytest.raises(InputError, match="other has no pilots in preset 'quick'"):
        run_study(study, Options("quick", pilots=True, output_dir=tmp_path / "study"))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 3}, "seeds is 3, there 2"),
        ({"threads": 2}, "threads is 2, there 1"),
        ({"arm": "deeper"}, "did you mean 'deep'"),
        ({"preset": "smal"}, "did you mean 'small'"),
        ({"preset": "quick"}, "preset is 'quick', there 'small'"),
    ],
)
def test_another_study_in_the_same_directory_and_unknown_names_are_refused(
    finished, rates, options, message
):
    with pytest.raises(InputError, match=message):
        run_study(
            toy.STUDY,
            Options(**{"preset": "small", "output_dir": finished, "rates": rates} | options),
        )


def test_data_that_is_not_prepared_is_noticed_first_and_leaves_nothing(tmp_path):
    """Before a worker is started; the same directory takes the corrected command."""
    preset = dataclasses.replace(toy.STUDY.presets["quick"], dataset="cifar10")
    study = dataclasses.replace(toy.STUDY, presets={"quick": preset})
    options = Options(output_dir=tmp_path / "study", data_dir=str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"'cifar10' is not prepared in .*data; prepare it with"):
        run_study(study, options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("lock", "arm"), [("study", ""), ("study/runs/deep", "deep")])
def test_a_study_and_each_of_its_arms_run_once_at_a_time(lock, arm, tmp_path):
    with (
        hold(tmp_path / lock, print),
        pytest.raises(InputError, match=f"{lock} is in use by process"),
    ):
        run_study(toy.STUDY, Options(output_dir=tmp_path / "study", arm=arm))
    assert list(tmp_path.rglob("config.json")) == []


@pytest.mark.parametrize(
    "wrong", [{"seeds": 1}, {"jobs": -1}, {"threads": 0}, {"arm": "a", "pilots": True}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Options(**wrong)


def test_seeds_of_judged_runs_pilots_and_repetitions_are_apart():
    most = 400
    judged = set(study_seeds(Preset("digits", most)))
    pilots = set(range(PILOT_FIRST_SEED, PILOT_FIRST_SEED + 3))
    again = {seed + 500 for seed in judged}
    assert min(judged) == FIRST_SEED
    assert not judged & pilots and not judged & again and not pilots & again


def test_an_arm_alone_gives_the_same_numbers(finished, rates, tmp_path, capsys):
    """As a job of its own an arm is bitwise identical to that of the complete study."""
    run_study(toy.STUDY, Options("small", output_dir=tmp_path, arm="deep", rates=rates))
    assert "concludes the study" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()
    arm = arms_of("small")["deep"]
    alone, together = collect(arm, tmp_path), collect(arm, finished)
    assert alone is not None and together is not None
    ends = [
        [{key: rows[-1][key] for key in rows[-1].keys() - {*TIMES}} for rows in result.rows]
        for result in (alone, together)
    ]
    assert ends[0] == ends[1]


def test_runs_of_another_directory_are_reused(finished, rates, tmp_path, monkeypatch):
    """All of them: no worker is needed."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    out = tmp_path / "toy-small"
    options = {"rates": rates, "reuse_runs_from": finished.parent, "jobs": 1}
    run_study(toy.STUDY, Options("small", output_dir=out, **options))
    for name in ("deep", "shallow"):
        for first, second in zip(
            arms_of("small")[name].run_dirs(finished), arms_of("small")[name].run_dirs(out),
            strict=True,
        ):  # fmt: skip
            rows = (first / "metrics.jsonl").read_text()  # with the times of its steps
            assert rows == (second / "metrics.jsonl").read_text()


COMMAND = """
from pathlib import Path
import sys
from deepjax.study.runner import run_study
from deepjax.study.study import Options
from tests.study import toy

if __name__ == "__main__":
    out, rates = map(Path, sys.argv[1:])
    run_study(toy.STUDY, Options("small", output_dir=out, rates=rates, jobs=1))
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_study_that_was_stopped_is_resumed_by_the_same_command(
    number, finished, record, rates, tmp_path
):
    """Once its first run is finished, before the others are."""
    script, out = tmp_path / "study.py", tmp_path / "out"
    script.write_text(COMMAND)
    command = [sys.executable, str(script), str(out), str(rates)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path])}
    first, *_, last = (run for arm in arms_of("small").values() for run in arm.run_dirs(out))
    with subprocess.Popen(command, env=environment) as study:
        until = time.monotonic() + 300
        while not is_finished(first):
            assert time.monotonic() < until and study.poll() is None
            time.sleep(0.02)
        study.send_signal(number)
    assert study.returncode and not is_finished(last) and not (out / "result.json").exists()
    before = (first / "metrics.jsonl").read_bytes()
    run_study(toy.STUDY, Options("small", output_dir=out, rates=rates, jobs=1))
    assert (first / "metrics.jsonl").read_bytes() == before
    resumed = json.loads((out / "result.json").read_text())
    assert resumed["arms"] == record["arms"] and resumed["verdicts"] == record["verdicts"]
