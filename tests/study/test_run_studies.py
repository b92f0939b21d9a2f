"""The command of all studies: order, publishing, second runs, pilots, failures."""

import json
import shutil
from pathlib import Path

import pytest

from deepjax.command_line import parse
from deepjax.errors import InputError
from deepjax.study.arms.rates import packaged_rates
from deepjax.study.claim import Control, ExactClaim
from deepjax.study.report.page import write_page
from deepjax.study.report.pilots_page import write_pilots_page
from deepjax.study.report.published import RESULT, SECOND
from deepjax.study.stats.intervals import PILOT_SEEDS
from deepjax.study.stats.power import ENOUGH
from deepjax.study.study import Options as StudyOptions
from deepjax.study.study import claims_of_interest
from experiments import run_studies as studies
from experiments.run_studies import BEYOND, STUDIES, Options, main, run_order
from tests.study.report.fabricated import declared, record, verdict


def made(name: str, **others):
    return record(name, [verdict(f"Claim of {name}.", "supported", 1e-6)], **others)


@pytest.fixture
def ran(monkeypatch):
    """Scripts that write a made-up result at once; the names of those that ran."""
    names = []

    def run_script(name, out, runs, options):
        names.append(name)
        if name == "optimization":
            return False
        out.mkdir(parents=True)
        result = made(name, preset=options.preset)
        (out / RESULT).write_text(json.dumps(result))
        for file in ("report.html", "error.png", "not_in_the_result.png"):
            (out / file).write_text(file)
        return True

    monkeypatch.setattr(studies, "run_script", run_script)
    monkeypatch.setattr(studies, "declared", lambda names: declared(*names))
    return names


@pytest.fixture
def folders(tmp_path):
    return {"runs": tmp_path / "runs", "results": tmp_path / "results"}


def test_sets_and_names_are_run_once_and_first_what_others_reuse():
    assert run_order(["lecture"])[0] == "degradation"
    assert sorted(run_order(["lecture"])) == sorted(STUDIES)
    assert run_order(["beyond"]) == list(BEYOND)
    assert run_order(["all", "degradation"]) == run_order(["all"])
    assert run_order(["small_filters", "degradation"]) == ["degradation", "small_filters"]


def test_results_figures_and_reports_are_published_with_the_page(ran, folders, capsys):
    main(Options(studies=("small_filters", "degradation"), **folders))
    assert ran == ["degradation", "small_filters"]
    published = folders["results"] / "degradation-small"
    assert {path.name for path in published.iterdir()} == {RESULT, "report.html", "error.png"}
    page = (folders["results"] / "README.md").read_text()
    assert page.index("(#small_filters)") < page.index("(#degradation)")  # the lecture's order
    printed = capsys.readouterr().out
    assert "[2/2] small_filters-small" in printed and "min in all. Read" in printed


def test_quick_studies_are_not_published(ran, folders):
    main(Options(studies=("degradation",), preset="quick", **folders))
    assert ran == ["degradation"] and not folders["results"].exists()


def test_one_that_fails_ends_the_command_with_an_error_after_the_others(ran, folders):
    with pytest.raises(SystemExit, match="failed: optimization"):
        main(Options(studies=("optimization", "small_filters"), **folders))
    assert (folders["results"] / "small_filters-small" / RESULT).exists()


def test_a_second_run_is_published_next_to_the_first(ran, folders, tmp_path):
    main(Options(studies=("degradation",), **folders))
    second = tmp_path / "second" / "degradation-small"
    second.mkdir(parents=True)
    options = {"studies": ("degradation",), "publish_only": True, "second_runs": second.parent}
    other = verdict("Claim of degradation.", "refuted", 1e-6)
    (second / RESULT).write_text(json.dumps(record("degradation", [other])))
    main(Options(**options, **folders))
    assert "in the second run refuted" in (folders["results"] / "README.md").read_text()
    (second / RESULT).write_text(json.dumps(record("degradation", [other], protocol="other")))
    with pytest.raises(InputError, match="is no second run of degradation-small"):
        main(Options(**options, **folders))


def test_a_second_run_with_the_same_rounding_is_refused(ran, folders, tmp_path):
    main(Options(studies=("degradation",), **folders))
    second = tmp_path / "second" / "degradation-small"
    second.mkdir(parents=True)
    first = folders["results"] / "degradation-small" / RESULT
    trained = json.loads(first.read_text()) | {"arms": {"plain8": {"test_error": [0.1, 0.2]}}}
    options = Options(publish_only=True, second_runs=second.parent, **folders)
    (folders["runs"] / "degradation-small" / RESULT).write_text(json.dumps(trained))
    (second / RESULT).write_text(json.dumps(trained))
    with pytest.raises(InputError, match="rounded as the first run"):
        main(options)
    trained["arms"]["plain8"]["test_error"] = [0.1, 0.3]
    (second / RESULT).write_text(json.dumps(trained))
    main(options)


def test_a_second_run_of_an_earlier_protocol_is_removed(ran, folders):
    main(Options(studies=("degradation",), **folders))
    second = folders["results"] / "degradation-small" / SECOND
    second.write_text(json.dumps(made("degradation", protocol="earlier")))
    main(Options(studies=("degradation",), publish_only=True, **folders))
    assert not second.exists()


def test_pilots_publish_their_record_and_store_the_rates(folders, tmp_path, monkeypatch):
    rates = {"small_filters-small": {"stack": {"rate": 0.1, "train_error": 0, "test_error": 0}}}
    packaged = tmp_path / "rates.json"
    packaged.write_text(json.dumps({"other-small": rates["small_filters-small"]}))
    out = folders["runs"] / "small_filters-small-pilots"
    out.mkdir(parents=True)
    (out / "rates.json").write_text(json.dumps(rates))
    errors = {"train": {"0.1": [0.1]}, "test": {"0.1": [0.2]}}
    arm = {"rate": 0.1, "selection": {"train": 0.0, "test": 0.0}, "errors": errors}
    pilots = (
        made("small_filters")
        | {"dataset": "x", "pilot_seeds": 3}
        | {"select": "train", "arms": {"stack": arm}}
    )
    (out / "pilots.json").write_text(json.dumps(pilots))
    monkeypatch.setattr(studies, "PACKAGED", packaged)
    monkeypatch.setattr(studies, "is_piloted", lambda name, preset: name != "degradation")
    names = ("degradation", "small_filters")
    main(Options(studies=names, pilots=True, publish_only=True, **folders))
    assert sorted(json.loads(packaged.read_text())) == ["other-small", "small_filters-small"]
    assert "**10.0 / 20.0**" in (folders["results"] / "pilots" / "README.md").read_text()
    assert not (folders["results"] / "README.md").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"studies": ("degradatoin",)}, "did you mean 'degradation'"),
        ({"threads": 0}, "threads"),
        ({"preset": "quick", "publish_only": True}, "to publish"),
        ({"pilots": True, "second_runs": "x"}, "second_runs"),
        ({"executor_options": ("time=5",)}, "executor_options"),
        ({"executor": "kubernetes", "pilots": True}, "executor is 'kubernetes'"),
        ({"retries": -1}, "retries"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Options(**given)


def test_a_script_gets_the_options_that_it_shares():
    given = ("partition=gpu", "time=60")
    shared = {"executor": "slurm", "executor_options": given, "retries": 5, "pilots": True}
    options = Options(preset="gpu", **shared)
    _, script, *rest = studies.script_command("degradation", options, ["--output-dir", "x"])
    assert Path(script).name == "degradation.py"
    found = parse(StudyOptions, rest)
    assert found == StudyOptions("gpu", output_dir=Path("x"), **shared)


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.system  # imports every study
def test_the_published_pages_are_what_the_published_results_give(tmp_path):
    for path in RESULTS.iterdir():
        if path.name != "README.md":
            (tmp_path / path.name).symlink_to(path)
    found = write_page(tmp_path, studies.declared(STUDIES), studies.declared(BEYOND))
    assert found.read_text() == (RESULTS / "README.md").read_text()
    pilots = tmp_path / "new" / "pilots"
    shutil.copytree(RESULTS / "pilots", pilots)
    published = (RESULTS / "pilots" / "README.md").read_text()
    assert write_pilots_page(pilots).read_text() == published


PUBLISHED = sorted([*RESULTS.glob("*-*/*.json"), *(RESULTS / "pilots").glob("*.json")])


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_published_commands_name_no_folder_of_a_machine(path):
    assert json.loads(path.read_text())["command"].startswith("python experiments/")


PILOTS = sorted((RESULTS / "pilots").glob("*.json"))


@pytest.mark.parametrize("path", PILOTS, ids=lambda path: path.stem)
def test_published_pilots_are_those_of_the_presets(path):
    """Rates, seeds; and claims that pilots promise too little power are declared exploratory."""
    record = json.loads(path.read_text())
    assert record["pilot_seeds"] == PILOT_SEEDS
    rates = packaged_rates(record["study"], record["preset"])
    if record["arms"]:
        assert {name: rate.rate for name, rate in rates.items()} == {
            name: found["rate"] for name, found in record["arms"].items()
        }
    claims = claims_of_interest(studies.declaration(record["study"]))
    assert set(record["power"]) <= {claim.text for claim in claims}
    for claim in claims:
        promised = record["power"].get(claim.text)
        if promised is not None and promised["power"] < ENOUGH:
            assert claim.exploratory, claim.text


@pytest.mark.parametrize("name", (*STUDIES, *BEYOND))
def test_every_measured_claim_states_its_smallest_effect_of_interest(name):
    claims = studies.declaration(name).claims
    assert claims_of_interest(studies.declaration(name)) == [
        each for each in claims if not isinstance(each, ExactClaim | Control)
    ]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-small/result.json")), ids=str)
def test_every_claim_of_a_published_study_was_promised_a_power(path):
    study = studies.declaration(path.parent.name.removesuffix("-small"))
    arms = set(study.preset_arms(study.presets["small"]))
    claims = {
        claim.text
        for claim in claims_of_interest(study)
        if all(set(quantity.arms) <= arms for quantity in claim.quantities)
    }
    if claims:
        record = json.loads((RESULTS / "pilots" / f"{path.parent.name}.json").read_text())
        assert set(record["power"]) == claims
