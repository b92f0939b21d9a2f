"""The complete study of docs/studies.md: forty lines that run and are judged as the page says."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from deepjax.study.arms.result import ArmResult
from deepjax.study.claim import judge_claims
from deepjax.study.results import StudyResults
from deepjax.study.runner import run_study
from deepjax.study.study import Options, Study

PAGE = Path(__file__).parents[2] / "docs" / "studies.md"
LINES, COLUMNS = 40, 100


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    """The STUDY of the page's example, imported from a file."""
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    path = tmp_path_factory.mktemp("example") / "nonlinearity.py"
    path.write_text(found[1])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STUDY


def test_it_has_forty_lines(study):
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    lines = found[1].splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS
    assert study.name == "nonlinearity"


def fabricated(study: Study, errors: dict[str, float]) -> StudyResults:
    """Results with the given test errors, in per cent, and a noise of a tenth of a point."""
    preset, random = study.presets["small"], np.random.default_rng(0)
    arms = {}
    for name, percent in errors.items():
        by_seed = percent / 100 + random.normal(0, 1e-3, (preset.seeds, 1))
        wrong = (np.arange(4000) / 4000 < by_seed).astype(float)
        arms[name] = ArmResult(0.1, [], {"train": wrong, "test": wrong}, preset.dataset, name)
    return StudyResults(preset, tuple(range(preset.seeds)), arms)


@pytest.mark.parametrize(
    ("linear", "outcome"), [(14.0, "supported"), (10.0, "refuted"), (12.0, "inconclusive")]
)
def test_it_is_judged_either_way(study, linear, outcome):
    errors = {"relu": 12.0, "linear": linear, "relu_again": 12.0, "relu_few_images": 15.0}
    verdicts = judge_claims(study.claims, fabricated(study, errors))
    assert [each.outcome for each in verdicts] == [outcome, "inconclusive", "supported"]


@pytest.mark.system  # worker processes
def test_it_runs(study, tmp_path):
    preset = study.presets["quick"]
    short = {"steps": 3, "batch_size": 64, "warmup_epochs": 0.0}
    quick = dataclasses.replace(preset, training=short)
    short_study = dataclasses.replace(study, presets={"quick": quick})
    run_study(short_study, Options(output_dir=tmp_path, jobs=1))
    assert {"result.json", "report.html", "error.png"} <= {p.name for p in tmp_path.iterdir()}
