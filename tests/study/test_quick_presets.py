"""Every study's quick preset from its training, here of two steps, to its report."""

import dataclasses
import importlib

import pytest

from deepjax.study.runner import run_study
from deepjax.study.study import Options, Study
from experiments.run_studies import SETS

pytestmark = pytest.mark.slow

COMPLETE = ("trained_networks", "gradient_noise")  # which measure the training itself


def shortened(study: Study) -> Study:
    """The study, its quick preset with a training of two steps where that can be measured."""
    quick = study.presets["quick"]
    if study.name in COMPLETE:
        return study
    short = {name: value for name, value in quick.training.items() if name != "epochs"}
    training = short | {"steps": 2, "warmup_epochs": 0.0}
    return dataclasses.replace(
        study, presets={"quick": dataclasses.replace(quick, training=training)}
    )


@pytest.mark.parametrize("name", SETS["all"])
def test_it_measures_and_draws_what_its_networks_allow(name, tmp_path):
    study = importlib.import_module(f"experiments.{name}").STUDY
    run_study(shortened(study), Options(output_dir=tmp_path, jobs=1))
    files = {path.name for path in tmp_path.iterdir()}
    assert {"result.json", "report.html"} <= files
    assert [name for name in files if name.endswith(".png")]
