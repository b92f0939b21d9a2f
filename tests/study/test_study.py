"""A study end to end: run, resumed, refused, judged, published."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deepjax.errors import InputError
from deepjax.study.arms import best_rate, collect, run_arm
from deepjax.study.report.index import write_page
from deepjax.study.runner import run_study
from deepjax.study.study import Options
from deepjax.training.run_directory.run_lock import hold
from experiments import run_studies as studies
from tests.study import toy


def failed_controls(record: Mapping[str, Any]) -> list[str]:
    """The claims of the controls with an unexpected outcome, or that could not fail."""
    controls = [verdict for verdict in record["verdicts"] if verdict["control"]]
    failed = [
        v["claim"]
        for v in controls
        if v["outcome"] not in v["control"] or len(set(v["control"])) > 2
    ]
    return failed or ([] if controls else ["no control at all"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "toy-digits"
    run_study(toy.STUDY, Options(output_dir=out, jobs=2))
    return out


@pytest.fixture(scope="module")
def record(finished):
    return json.loads((finished / "result.json").read_text())


def test_it_leaves_result_report_and_figures(finished, record):
    assert [bool(verdict["control"]) for verdict in record["verdicts"]] == [False, True]
    assert {name: len(arm["test_error"]) for name, arm in record["arms"].items()} == {
        "deep": 2,
        "shallow": 2,
    }
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "http" not in page.replace("https://archive.ics.uci.edu", "")  # self-contained
    for verdict in record["verdicts"]:
        assert verdict["claim"] in page and all(finding in page for finding in verdict["findings"])
    assert "control: inconclusive, as it must be" in page


def test_the_rate_is_the_best_of_the_sweep_and_the_sweep_is_reported(record):
    for name, arm in record["arms"].items():
        sweep = {float(rate): error for rate, error in arm["sweep"].items()}
        assert arm["rate"] == best_rate(sweep), name
        assert arm["train_error"][0] == min(sweep.values())


def test_every_seed_is_measured_on_its_own_runs(finished):
    for seed in (0, 1):
        assert json.loads((finished / "measured" / f"seed{seed}.json").read_text()) == {
            "steps": {"deep": 5, "shallow": 5},
            "seed": seed,
        }


def test_data_that_is_not_prepared_is_noticed_first_and_leaves_nothing(tmp_path):
    """Before a worker is started; the same folder takes the corrected command."""
    study = dataclasses.replace(toy.STUDY, presets={"cifar10": toy.STUDY.presets["digits"]})
    with pytest.raises(InputError, match="'cifar10' is not prepared"):
        run_study(
            study, Options(dataset="cifar10", output_dir=tmp_path / "study", data_dir=str(tmp_path))
        )
    assert not (tmp_path / "study").exists()


def test_again_it_only_draws(finished, record, capsys):
    run_study(toy.STUDY, Options(output_dir=finished))
    assert "was done already" in capsys.readouterr().out
    after = json.loads((finished / "result.json").read_text())
    assert {k: v for k, v in after.items() if k != "command"} == {
        k: v for k, v in record.items() if k != "command"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 3}, "seeds is 3, there 2"),
        ({"first_seed": 1000}, "first_seed is 1000, there 0"),
        ({"arm": "deeper"}, "did you mean 'deep'"),
        ({"dataset": "digit"}, "did you mean 'digits'"),
    ],
)
def test_another_study_in_the_same_directory_and_unknown_names_are_refused(
    finished, options, message
):
    with pytest.raises(InputError, match=message):
        run_study(toy.STUDY, Options(output_dir=finished, **options))


def test_where_the_data_is_not_prepared_nothing_is_begun(tmp_path):
    study = dataclasses.replace(toy.STUDY, presets={"fashion_mnist": toy.STUDY.presets["digits"]})
    options = Options(
        dataset="fashion_mnist", data_dir=str(tmp_path / "data"), output_dir=tmp_path / "study"
    )
    with pytest.raises(
        InputError, match=r"'fashion_mnist' is not prepared in .*data; prepare it with"
    ):
        run_study(study, options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("lock", "options"), [("study", {}), ("study/runs/deep", {"arm": "deep"})])
def test_a_study_and_each_of_its_arms_run_once_at_a_time(lock, options, tmp_path):
    with (
        hold(tmp_path / lock, print),
        pytest.raises(InputError, match=f"{lock} is in use by process"),
    ):
        run_study(toy.STUDY, Options(output_dir=tmp_path / "study", **options))
    assert list(tmp_path.rglob("config.json")) == []


@pytest.mark.parametrize("wrong", [{"seeds": 1}, {"jobs": -1}, {"first_seed": -1}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Options(**wrong)


def test_an_arm_alone_gives_the_same_numbers(finished, tmp_path, capsys):
    """As a job of its own an arm is bitwise identical to that of the complete study."""
    run_study(toy.STUDY, Options(output_dir=tmp_path, arm="deep"))
    assert "concludes the study" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()
    preset = toy.STUDY.presets["digits"]
    arm = toy.make_arms(Options(), preset)["deep"]
    alone, together = collect(arm, tmp_path), collect(arm, finished)
    assert alone is not None and together is not None
    assert (alone.sweep, [rows[-1] for rows in alone.rows]) == (
        together.sweep,
        [rows[-1] for rows in together.rows],
    )


def test_a_finished_run_of_another_study_is_copied_and_only_of_the_same_configuration(
    tmp_path, monkeypatch
):
    preset = toy.STUDY.presets["digits"]
    arm = dataclasses.replace(toy.make_arms(Options(), preset)["shallow"], make=None)
    arm = dataclasses.replace(
        arm, config=dataclasses.replace(arm.config, model="cifar_plain20", width=2)
    )
    run_arm(arm, tmp_path / "first", None, lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr("deepjax.training.compile_training", None)  # nothing may be built
        run_arm(arm, tmp_path / "second", None, lambda *_: None, reuse_runs_from=tmp_path)
        assert collect(arm, tmp_path / "second") == collect(arm, tmp_path / "first")
        other = dataclasses.replace(arm, config=dataclasses.replace(arm.config, width=3))
        with pytest.raises(TypeError):
            run_arm(other, tmp_path / "third", None, lambda *_: None, reuse_runs_from=tmp_path)


def test_a_network_of_ones_own_needs_its_maker():
    from deepjax.training import TrainConfig, compile_training

    with pytest.raises(InputError, match="together with its maker"):
        compile_training(TrainConfig("own/deep"))


def test_the_page_says_every_verdict_and_what_is_missing(finished, record, tmp_path):
    studies.publish(finished, tmp_path / "toy-digits")
    (tmp_path / "toy.md").write_text("A remark.")
    page = write_page(tmp_path, ["toy", "other"], ["digits", "fashion_mnist"]).read_text()
    assert "Not run yet: other" in page and "A remark." in page and "(toy-digits/rows.png)" in page
    assert page.count(record["verdicts"][0]["claim"]) == 2  # in the summary and in its section
    assert "not run" in page and record["hardware"] in page


def test_a_control_that_fails_is_found(record):
    assert failed_controls(record) == []
    failed = [verdict | {"outcome": "supported"} for verdict in record["verdicts"]]
    assert failed_controls(record | {"verdicts": failed}) == ["Deep is worse than itself."]
    assert failed_controls(record | {"verdicts": record["verdicts"][:1]}) == ["no control at all"]


PUBLISHED = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*/result.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_every_published_study_has_controls_that_came_out_as_they_must(path):
    published = json.loads(path.read_text())
    assert failed_controls(published) == []
    assert published["seeds"] >= 3
    # No path of the machine that it ran on.
    assert published["command"].startswith("python experiments/")


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_study_of_the_lecture_is_declared_whole_and_short(name):
    script = Path(studies.__file__).with_name(f"{name}.py")
    assert script.read_text().count("\n") <= 300
    study = __import__(f"experiments.{name}", fromlist=["STUDY"]).STUDY
    assert study.name == name
    assert {"digits", "fashion_mnist"} < set(study.presets), "and one at the paper's scale"
    assert all(preset.seeds >= 3 and preset.expected for preset in study.presets.values())
    assert dataclasses.is_dataclass(study)


def test_a_seed_that_diverges_is_a_result_and_guesses(tmp_path):
    """At a rate of 1,000 nothing trains: every rate of the sweep halts, and so does every seed."""
    preset = dataclasses.replace(toy.STUDY.presets["digits"], rates=(1e3,))
    arm = dataclasses.replace(toy.make_arms(Options(), preset)["shallow"], config=toy.DIVERGES)
    run_arm(arm, tmp_path, None, lambda *_: None)
    result = collect(arm, tmp_path)
    assert result is not None and result.sweep == {1e3: float("inf")}
    assert result.final("test_error") == [0.9, 0.9]
